#include "prompts.hpp"

#include "engine/input_error.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace fulmen::command {
namespace {

using engine::InputError;
using Json = nlohmann::json;

constexpr size_t kMostInputBytes = size_t{1} << 30;

std::string read_all(const std::string& path) {
  std::FILE* file = path == "-" ? stdin : std::fopen(path.c_str(), "rb");
  if (!file) throw InputError(fmt::format("{}: {}", path, std::strerror(errno)));
  std::string bytes;
  char block[65536];
  for (size_t n; (n = std::fread(block, 1, sizeof block, file)) > 0 && bytes.size() <= kMostInputBytes;)
    bytes.append(block, n);
  const bool failed = std::ferror(file);
  const int error = errno;
  if (file != stdin) std::fclose(file);
  if (failed) throw InputError(fmt::format("{}: {}", path, std::strerror(error)));
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

double number(const Json& value, const char* key, double least, double most) {
  if (!value.is_number()) throw InputError(fmt::format("\"{}\": expected a number", key));
  const double number = value.get<double>();
  if (!(number >= least && number <= most))
    throw InputError(fmt::format("\"{}\": expected {} to {}, found {}", key, least, most, number));
  return number;
}

std::string text(const Json& value, const char* key) {
  if (!value.is_string()) throw InputError(fmt::format("\"{}\": expected a string", key));
  return value.get<std::string>();
}

void take_field(Prompt& prompt, const std::string& key, const Json& value) {
  constexpr double kMostTokens = 1 << 30;
  if (key == "prompt") {
    prompt.text = text(value, "prompt");
  } else if (key == "system") {
    prompt.system = text(value, "system");
  } else if (key == "max_tokens") {
    prompt.options.max_tokens = static_cast<int64_t>(number(value, "max_tokens", 1, kMostTokens));
  } else if (key == "temperature") {
    prompt.options.sampling.temperature = static_cast<float>(number(value, "temperature", 0, 100));
  } else if (key == "top_k") {
    prompt.options.sampling.top_k = static_cast<int32_t>(number(value, "top_k", 0, kMostTokens));
  } else if (key == "top_p") {
    prompt.options.sampling.top_p = static_cast<float>(number(value, "top_p", 0, 1));
  } else if (key == "min_p") {
    prompt.options.sampling.min_p = static_cast<float>(number(value, "min_p", 0, 1));
  } else if (key == "seed") {
    if (!value.is_number_unsigned()) throw InputError("\"seed\": expected a whole number from 0");
    prompt.options.sampling.seed = value.get<uint64_t>();
  } else if (key == "stop") {
    prompt.options.stop.clear();
    if (value.is_string()) prompt.options.stop.push_back(value.get<std::string>());
    else if (value.is_array())
      for (const Json& stop : value) prompt.options.stop.push_back(text(stop, "stop"));
    else throw InputError("\"stop\": expected a string or a list of strings");
  } else if (key == "messages") {
    if (!value.is_array() || value.empty()) throw InputError("\"messages\": expected a list of messages");
    for (const Json& message : value) {
      if (!message.is_object() || !message.contains("role") || !message.contains("content"))
        throw InputError("\"messages\": expected objects with \"role\" and \"content\"");
      prompt.messages.push_back({text(message["role"], "role"), text(message["content"], "content")});
    }
    prompt.text = prompt.messages.back().content;
  } else {
    throw InputError(fmt::format("unknown key {}", engine::quoted(key)));
  }
}

}  // namespace

Prompt parse_json_prompt(const std::string& line, const GenerateOptions& options) {
  Prompt prompt = plain_prompt("", options);
  try {
    // A line of brackets alone would nest as deep as it is long.
    constexpr int kMostNesting = 8;
    const Json::parser_callback_t shallow = [](int depth, Json::parse_event_t, Json&) {
      if (depth > kMostNesting) throw InputError("JSON is nested too deeply");
      return true;
    };
    const Json object = Json::parse(line, shallow);
    if (!object.is_object()) throw InputError("expected a JSON object");
    if (object.contains("prompt") == object.contains("messages"))
      throw InputError("expected either \"prompt\" or \"messages\"");
    for (const auto& [key, value] : object.items()) take_field(prompt, key, value);
  } catch (const InputError& error) {
    prompt.error = error.what();
  } catch (const Json::exception& error) {
    prompt.error = fmt::format("not JSON: {}", engine::quoted(error.what()));
  }
  return prompt;
}

std::vector<Prompt> read_prompts(const GenerateOptions& options) {
  std::vector<Prompt> prompts;
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
      prompts.push_back(json ? parse_json_prompt(line, options) : plain_prompt(line, options));
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
  const std::vector<engine::TextPart> parts = form.render(messages, true);
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
