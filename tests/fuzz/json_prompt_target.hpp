#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>

#include "engine/json_prompt.hpp"
#include "engine/utf8.hpp"

namespace fulmen::fuzz {

/// Any bytes as a line of JSON: a prompt within the limits, or one line that says what is wrong. True for a prompt.
inline bool json_prompt_target(std::span<const uint8_t> input) {
  using namespace fulmen::engine;
  const auto require = [](bool right) {
    if (!right) std::abort();
  };
  const Prompt prompt = parse_json_prompt({reinterpret_cast<const char*>(input.data()), input.size()}, RequestOptions{});
  if (!prompt.error.empty()) {
    require(prompt.error.find('\n') == std::string::npos);
    require(prompt.error.size() < 400);
    return false;
  }
  const Sampling& s = prompt.options.sampling;
  require(prompt.options.max_tokens >= 1);
  require(s.temperature >= 0 && s.top_k >= 0 && s.top_p >= 0 && s.top_p <= 1 && s.min_p >= 0 && s.min_p <= 1);
  require(!first_invalid_utf8(prompt.text));
  return true;
}

}  // namespace fulmen::fuzz
