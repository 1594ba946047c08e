// The key of a kernel: everything its machine code depends on, but for the compiler's version, as one text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "jit/sources.hpp"
#include "plan/targets.hpp"

namespace fulmen {

// What NVRTC is told, alike for every version of it.
std::vector<std::string> compile_options(const Target& target);

// Options, program text and the whole text of each file it reaches, each with its length before it, so that no two
// different inputs give one text.
std::string key_text(std::string_view program, const Sources& reached, const std::vector<std::string>& options);

// 32 hexadecimal digits (XXH3-128). Only a name: whoever finds something under it compares the text.
std::string key_name(std::string_view key_text);

}  // namespace fulmen
