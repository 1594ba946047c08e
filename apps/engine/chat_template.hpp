#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tokenizer.hpp"

namespace fulmen::engine {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

/// How a model wants a conversation written. The forms are built in; the program (Jinja) that a model file
/// carries is compared with what is known of them and never executed.
class ChatTemplate {
 public:
  /// "chatml", "smollm2", "qwen2", "qwen2.5", "llama3", "llama3.1", "zephyr"; another name throws InputError that lists them.
  static ChatTemplate named(std::string_view name);
  /// The form whose marks stand in the text of a model's template (GGUF key tokenizer.chat_template); throws
  /// InputError naming --chat-template where none or not exactly one fits.
  static ChatTemplate recognized(std::string_view template_text);
  static std::string names();  // for help and errors

  std::string_view name() const;

  /// The conversation, ready for Tokenizer::encode: the template's marks are special parts, what users wrote
  /// is plain. With add_generation_prompt it ends where the assistant's answer begins. Throws InputError for
  /// an unknown role and for a system message that isn't the first. end_of_text: the name of the model's token,
  /// which ends a message in some forms.
  std::vector<TextPart> render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                               std::string_view end_of_text = {}) const;

  struct Form;  // a row of the table of forms

 private:
  explicit ChatTemplate(const Form& form) : form_(&form) {}
  const Form* form_;
};

}  // namespace fulmen::engine
