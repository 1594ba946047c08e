// Prompts from the command line, files and standard input, and how they become tokens.
#pragma once

#include "options.hpp"

#include "engine/chat_template.hpp"
#include "engine/json_prompt.hpp"

#include <string>
#include <vector>

namespace fulmen::command {

using engine::Prompt;

/// In order: -p, then the files. Throws InputError for a file that can't be read.
std::vector<Prompt> read_prompts(const GenerateOptions& options);

/// The template that the options ask for; nothing: prompts are plain text.
std::optional<engine::ChatTemplate> choose_template(const GenerateOptions& options, const engine::Engine& engine);

/// Throws InputError.
std::vector<int32_t> encode_messages(const engine::Engine& engine, const engine::ChatTemplate& form,
                                     const std::vector<engine::ChatMessage>& messages, bool special);
std::vector<int32_t> encode_prompt(const engine::Engine& engine, const std::optional<engine::ChatTemplate>& form,
                                   const Prompt& prompt, bool special);

}  // namespace fulmen::command
