// Prompts from the command line, files and standard input, and how they become tokens.
#pragma once

#include "options.hpp"

#include "engine/chat_template.hpp"

#include <string>
#include <vector>

namespace fulmen::command {

/// One request as the user gave it; what a JSON line leaves out comes from the command line.
struct Prompt {
  std::string text;  // for showing: the prompt, or the last message
  std::vector<engine::ChatMessage> messages;  // empty: text is a plain prompt or one user message
  engine::RequestOptions options;             // all but the tokens
  std::optional<std::string> system;
  std::string error;                          // one line: this request can't run
};

/// In order: -p, then the files. Throws InputError for a file that can't be read.
std::vector<Prompt> read_prompts(const GenerateOptions& options);

/// One line of JSON: "prompt" or "messages", and optionally "system", "max_tokens", "temperature", "top_k", "top_p",
/// "min_p", "seed", "stop". What is wrong with it goes into the prompt's error.
Prompt parse_json_prompt(const std::string& line, const GenerateOptions& options);

/// The template that the options ask for; nothing: prompts are plain text.
std::optional<engine::ChatTemplate> choose_template(const GenerateOptions& options, const engine::Engine& engine);

/// Throws InputError.
std::vector<int32_t> encode_messages(const engine::Engine& engine, const engine::ChatTemplate& form,
                                     const std::vector<engine::ChatMessage>& messages, bool special);
std::vector<int32_t> encode_prompt(const engine::Engine& engine, const std::optional<engine::ChatTemplate>& form,
                                   const Prompt& prompt, bool special);

}  // namespace fulmen::command
