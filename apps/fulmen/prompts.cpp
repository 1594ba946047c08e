#include "prompts.hpp"

#include "engine/input_error.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

namespace fulmen::command {
namespace {

using engine::InputError;

constexpr size_t kMostInputBytes = size_t{1} << 30;

std::string read_all(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> opened(path == "-" ? nullptr : std::fopen(path.c_str(), "rb"),
                                                              &std::fclose);
  std::FILE* file = path == "-" ? stdin : opened.get();
  if (!file) throw InputError(fmt::format("{}: {}", path, std::strerror(errno)));
  std::string bytes;
  char block[65536];
  size_t got = 0;
  do {
    got = std::fread(block, 1, sizeof block, file);
    bytes.append(block, got);
  } while (got == sizeof block && bytes.size() <= kMostInputBytes);
  if (std::ferror(file)) throw InputError(fmt::format("{}: {}", path, std::strerror(errno)));
  if (bytes.size() > kMostInputBytes) throw InputError(fmt::format("{}: more than 1 GiB of prompts", path));
  return bytes;
}

std::vector<std::string> lines_of(const std::string& bytes) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < bytes.size();) {
    size_t end = bytes.find('\n', at);
    if (end == std::string::npos) end = bytes.size();
    std::string line = bytes.substr(at, end - at);
    if (!line.empty() && line.back() == '\r') line.pop_back();
    lines.push_back(std::move(line));
    at = end + 1;
  }
  return lines;
}

engine::RequestOptions defaults(const GenerateOptions& options) {
  engine::RequestOptions request;
  request.max_tokens = options.max_tokens;
  request.sampling = options.sampling;
  request.stop = options.stop;
  request.ignore_end = options.ignore_end;
  return request;
}

Prompt plain_prompt(std::string text, const GenerateOptions& options) {
  Prompt prompt;
  prompt.text = std::move(text);
  prompt.options = defaults(options);
  return prompt;
}

}  // namespace

std::vector<Prompt> read_prompts(const GenerateOptions& options) {
  std::vector<Prompt> prompts;
  prompts.reserve(options.prompts.size());
  for (const std::string& text : options.prompts) prompts.push_back(plain_prompt(text, options));
  for (const std::string& path : options.files) {
    const std::string bytes = read_all(path);
    if (options.format == "text") {
      prompts.push_back(plain_prompt(bytes, options));
      continue;
    }
    const std::vector<std::string> lines = lines_of(bytes);
    bool json = options.format == "jsonl";
    if (options.format == "auto") {
      const auto first = std::find_if(lines.begin(), lines.end(), [](const std::string& l) { return !l.empty(); });
      json = first != lines.end() && first->front() == '{';
    }
    for (const std::string& line : lines) {
      if (line.find_first_not_of(" \t") == std::string::npos) continue;  // blank lines part the prompts
      prompts.push_back(json ? engine::parse_json_prompt(line, defaults(options)) : plain_prompt(line, options));
    }
  }
  return prompts;
}

std::optional<engine::ChatTemplate> choose_template(const GenerateOptions& options, const engine::Engine& engine) {
  if (options.chat_template == "none") return std::nullopt;
  if (options.chat_template != "auto") return engine::ChatTemplate::named(options.chat_template);
  if (!engine.chat_template() && !engine.chat_template_error().empty())
    throw InputError(engine.chat_template_error());
  return engine.chat_template();
}

std::vector<int32_t> encode_messages(const engine::Engine& engine, const engine::ChatTemplate& form,
                                     const std::vector<engine::ChatMessage>& messages, bool special) {
  const engine::Tokenizer& tokenizer = engine.tokenizer();
  std::vector<int32_t> tokens;
  const auto append = [&](const std::vector<int32_t>& more) { tokens.insert(tokens.end(), more.begin(), more.end()); };
  const std::string end_of_text(tokenizer.eos() ? tokenizer.decode(*tokenizer.eos()) : std::string_view());
  const std::vector<engine::TextPart> parts = form.render(messages, true, end_of_text);
  const auto with_bos = [&] {  // some templates begin with it themselves
    if (tokenizer.add_bos() && tokenizer.bos() && (tokens.empty() || tokens[0] != *tokenizer.bos()))
      tokens.insert(tokens.begin(), *tokenizer.bos());
    return tokens;
  };
  if (!special) {
    append(tokenizer.encode(std::span<const engine::TextPart>(parts)));
    return with_bos();
  }
  std::string plain;
  const auto flush = [&] { append(tokenizer.encode(std::exchange(plain, {}), {.parse_special = true})); };
  for (const engine::TextPart& part : parts) {
    if (!part.special) {
      plain += part.text;
      continue;
    }
    flush();
    append(tokenizer.encode(std::span<const engine::TextPart>(&part, 1)));
  }
  flush();
  return with_bos();
}

std::vector<int32_t> encode_prompt(const engine::Engine& engine, const std::optional<engine::ChatTemplate>& form,
                                   const Prompt& prompt, bool special) {
  if (prompt.text.empty() && prompt.messages.empty()) throw InputError("the prompt is empty");
  const engine::Tokenizer& tokenizer = engine.tokenizer();
  if (!form) {
    if (!prompt.messages.empty()) throw InputError("\"messages\" need a chat template: name one with --chat-template");
    std::vector<int32_t> tokens;
    if (tokenizer.add_bos() && tokenizer.bos()) tokens.push_back(*tokenizer.bos());
    const std::vector<int32_t> more = tokenizer.encode(prompt.text, {.parse_special = special});
    tokens.insert(tokens.end(), more.begin(), more.end());
    return tokens;
  }
  std::vector<engine::ChatMessage> messages = prompt.messages;
  if (messages.empty()) messages.push_back({"user", prompt.text});
  if (prompt.system && messages.front().role != "system")
    messages.insert(messages.begin(), {"system", *prompt.system});
  return encode_messages(engine, *form, messages, special);
}

}  // namespace fulmen::command
