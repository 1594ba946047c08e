#include "engine/chat_template.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "engine/input_error.hpp"

namespace fulmen::engine {

struct ChatTemplate::Form {
  std::string_view name;
  std::string_view start;           // special, once
  std::string_view before_role;     // special
  std::string_view before_role_plain;
  std::string_view after_role;      // special, may be empty
  std::string_view before_content;  // plain
  std::string_view after_content;   // special; empty: the model's end of text
  std::string_view after_message;   // plain
  bool trims_content;
  std::string_view
      default_system;  // said when the conversation begins without a system message; empty: nothing
  std::string_view system_preamble;  // begins the system message, which is then always there
};

namespace {

using Form = ChatTemplate::Form;

constexpr Form chatml(std::string_view name, std::string_view default_system) {
  return {.name = name,
          .start = "",
          .before_role = "<|im_start|>",
          .before_role_plain = "",
          .after_role = "",
          .before_content = "\n",
          .after_content = "<|im_end|>",
          .after_message = "\n",
          .trims_content = false,
          .default_system = default_system,
          .system_preamble = ""};
}

constexpr Form llama3(std::string_view name, std::string_view system_preamble) {
  return {.name = name,
          .start = "<|begin_of_text|>",
          .before_role = "<|start_header_id|>",
          .before_role_plain = "",
          .after_role = "<|end_header_id|>",
          .before_content = "\n\n",
          .after_content = "<|eot_id|>",
          .after_message = "",
          .trims_content = true,
          .default_system = "",
          .system_preamble = system_preamble};
}

constexpr Form kForms[] = {
    chatml("chatml", ""),
    chatml("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    chatml("qwen2", "You are a helpful assistant."),
    chatml("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    llama3("llama3", ""),
    // Where nobody tells the date, the model's own template states this one.
    llama3("llama3.1", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"),
    {.name = "zephyr",
     .start = "",
     .before_role = "",
     .before_role_plain = "<|",
     .after_role = "",
     .before_content = "|>\n",
     .after_content = "",
     .after_message = "\n",
     .trims_content = false,
     .default_system = "",
     .system_preamble = ""},
};

const Form& form(std::string_view name) {
  return *std::find_if(std::begin(kForms), std::end(kForms), [&](const Form& f) { return f.name == name; });
}

[[noreturn]] void fail_unknown(std::string_view reason) {
  throw InputError(
      fmt::format("the model's chat template isn't known here ({}); choose one with --chat-template: {}",
                  reason, ChatTemplate::names()));
}

/// The default system messages of a ChatML template: what follows each literal "<|im_start|>system\n", up to
/// the closing mark or the end of the string literal.
std::vector<std::string_view> default_systems(std::string_view text) {
  std::vector<std::string_view> out;
  // A line break in a string literal is written out by some templates and escaped by others.
  for (const std::string_view opening : {"<|im_start|>system\n", "<|im_start|>system\\n"}) {
    for (size_t at = text.find(opening); at != std::string_view::npos; at = text.find(opening, at + 1)) {
      const std::string_view rest = text.substr(at + opening.size());
      const size_t end = std::min({rest.find("<|im_end|>"), rest.find('\''), rest.find('"'), rest.size()});
      if (end > 0) out.push_back(rest.substr(0, end));
    }
  }
  return out;
}

const Form& recognize_chatml(std::string_view text) {
  const std::vector<std::string_view> systems = default_systems(text);
  if (systems.empty()) {
    // Templates that write the default as a string of its own (Qwen2.5 does, with tools around it).
    const Form* found = nullptr;
    for (const Form& f : kForms) {
      if (!f.default_system.empty() &&
          text.find(fmt::format("'{}'", f.default_system)) != std::string_view::npos) {
        if (found) fail_unknown("more than one default system message");
        found = &f;
      }
    }
    if (found) return *found;
    if (text.find("You are") != std::string_view::npos)
      fail_unknown("a ChatML template with an unknown default system message");
    return form("chatml");
  }
  for (const Form& f : kForms) {
    const auto says_it = [&](std::string_view system) { return system == f.default_system; };
    if (std::all_of(systems.begin(), systems.end(), says_it)) return f;
  }
  fail_unknown(fmt::format("a ChatML template with the default system message {}", quoted(systems[0])));
}

/// Without white space at both ends, as Jinja's trim: Unicode's, and the separators U+001C to U+001F.
std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpaces[] = {" ",
                                          "\t",
                                          "\n",
                                          "\v",
                                          "\f",
                                          "\r",
                                          "\x1c",
                                          "\x1d",
                                          "\x1e",
                                          "\x1f",
                                          "\xc2\x85",
                                          "\xc2\xa0",
                                          "\xe1\x9a\x80",
                                          "\xe2\x80\x80",
                                          "\xe2\x80\x81",
                                          "\xe2\x80\x82",
                                          "\xe2\x80\x83",
                                          "\xe2\x80\x84",
                                          "\xe2\x80\x85",
                                          "\xe2\x80\x86",
                                          "\xe2\x80\x87",
                                          "\xe2\x80\x88",
                                          "\xe2\x80\x89",
                                          "\xe2\x80\x8a",
                                          "\xe2\x80\xa8",
                                          "\xe2\x80\xa9",
                                          "\xe2\x80\xaf",
                                          "\xe2\x81\x9f",
                                          "\xe3\x80\x80"};
  for (bool again = true; again;) {
    again = false;
    for (const std::string_view space : kSpaces) {
      if (text.starts_with(space)) text.remove_prefix(space.size()), again = true;
      if (text.ends_with(space)) text.remove_suffix(space.size()), again = true;
    }
  }
  return text;
}

/// Joins plain neighbours, so that they are cut into words as one text, and leaves out empty parts.
class PartList {
 public:
  void special(std::string_view text) {
    if (!text.empty()) parts_.push_back({std::string(text), true});
  }
  void plain(std::string_view text) {
    if (text.empty()) return;
    if (parts_.empty() || parts_.back().special) parts_.push_back({});
    parts_.back().text += text;
  }
  std::vector<TextPart> take() { return std::move(parts_); }

 private:
  std::vector<TextPart> parts_;
};

void open_message(PartList& out, const Form& form, std::string_view role) {
  out.special(form.before_role);
  out.plain(form.before_role_plain);
  out.plain(role);
  out.special(form.after_role);
  out.plain(form.before_content);
}

void add_message(PartList& out, const Form& form, const ChatMessage& message, std::string_view end_of_text) {
  open_message(out, form, message.role);
  if (message.role == "system") out.plain(form.system_preamble);
  out.plain(form.trims_content ? trimmed(message.content) : message.content);
  out.special(form.after_content.empty() ? end_of_text : form.after_content);
  out.plain(form.after_message);
}

void check_roles(std::span<const ChatMessage> messages) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      throw InputError(
          fmt::format("message {}: role: expected system, user or assistant, found {}", i, quoted(role)));
    }
    if (role == "system" && i > 0)
      throw InputError(fmt::format("message {}: a system message must be the first", i));
  }
}

}  // namespace

ChatTemplate ChatTemplate::named(std::string_view name) {
  for (const Form& f : kForms) {
    if (f.name == name) return ChatTemplate(f);
  }
  throw InputError(fmt::format("--chat-template: expected one of {}; found {}", names(), quoted(name)));
}

ChatTemplate ChatTemplate::recognized(std::string_view text) {
  const auto has = [&](std::string_view mark) { return text.find(mark) != std::string_view::npos; };
  const bool is_chatml = has("<|im_start|>") && has("<|im_end|>");
  const bool is_llama3 = has("<|start_header_id|>") && has("<|end_header_id|>") && has("<|eot_id|>");
  const bool is_zephyr = has("<|user|>") && has("<|assistant|>") && has("eos_token");
  if (is_chatml + is_llama3 + is_zephyr != 1)
    fail_unknown(text.empty() ? "the model has none" : "its marks aren't those of one form");
  if (is_chatml) return ChatTemplate(recognize_chatml(text));
  if (is_zephyr) {
    if (!has("<|system|>") || has("You are")) fail_unknown("a Zephyr template with system messages of its own");
    return ChatTemplate(form("zephyr"));
  }
  // Llama 3.1 and later always say the date first.
  if (!has("Today Date")) return ChatTemplate(form("llama3"));
  if (!has("Cutting Knowledge Date: December 2023") || !has("26 Jul 2024")) fail_unknown("a Llama template with other dates");
  return ChatTemplate(form("llama3.1"));
}

std::string ChatTemplate::names() {
  std::string out;
  for (const Form& f : kForms) out += fmt::format("{}{}", out.empty() ? "" : ", ", f.name);
  return out;
}

std::string_view ChatTemplate::name() const { return form_->name; }

std::vector<TextPart> ChatTemplate::render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                                           std::string_view end_of_text) const {
  check_roles(messages);
  if (form_->after_content.empty() && end_of_text.empty())
    throw InputError(fmt::format("--chat-template {}: needs a model with an end-of-text token", form_->name));
  PartList out;
  out.special(form_->start);
  const bool says_system = !form_->default_system.empty() || !form_->system_preamble.empty();
  if (says_system && !messages.empty() && messages[0].role != "system")
    add_message(out, *form_, {"system", std::string(form_->default_system)}, end_of_text);
  for (const ChatMessage& message : messages) add_message(out, *form_, message, end_of_text);
  if (add_generation_prompt) open_message(out, *form_, "assistant");
  return out.take();
}

}  // namespace fulmen::engine
