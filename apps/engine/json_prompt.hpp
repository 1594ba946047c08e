// A request as a user writes it: text or a conversation, and settings. JSON is one way to write it.
#pragma once

#include "engine/chat_template.hpp"
#include "engine/request_options.hpp"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fulmen::engine {

/// One request as the user gave it; what a JSON line leaves out comes from the command line.
struct Prompt {
  std::string text;  // for showing: the prompt, or the last message
  std::vector<ChatMessage> messages;  // empty: text is a plain prompt or one user message
  RequestOptions options;             // all but the tokens
  std::optional<std::string> system;
  std::string error;                          // one line: this request can't run
};

/// One line of JSON: "prompt" or "messages", and optionally "system", "max_tokens", "temperature", "top_k", "top_p",
/// "min_p", "seed", "stop"; what it leaves out is that of `defaults`. What is wrong with it goes into the prompt's error.
Prompt parse_json_prompt(std::string_view line, const RequestOptions& defaults);

}  // namespace fulmen::engine
