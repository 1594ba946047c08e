#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

#include "apps/small_vocabulary.hpp"
#include "engine/input_error.hpp"
#include "engine/tokenizer.hpp"
#include "engine/utf8.hpp"

namespace fulmen::fuzz {

/// Any bytes as text for every pre-tokenizer. A vocabulary of all bytes gives the text back, or what NFC
/// makes of it; only text that isn't UTF-8 is refused. The first byte chooses pre-tokenizer and options.
inline void tokenizer_target(std::span<const uint8_t> input) {
  using namespace fulmen::engine;
  static const Tokenizer kTokenizers[] = {
      test::SmallVocabulary::chat("gpt2").tokenizer(), test::SmallVocabulary::chat("smollm").tokenizer(),
      test::SmallVocabulary::chat("llama3").tokenizer(), test::SmallVocabulary::chat("qwen2").tokenizer()};
  if (input.empty()) return;
  const Tokenizer& tokenizer = kTokenizers[input[0] % 4];
  const bool nfc = input[0] % 4 == 3;
  const std::string_view text(reinterpret_cast<const char*>(input.data()) + 1, input.size() - 1);
  const bool valid = !first_invalid_utf8(text);
  const auto require = [](bool right) {
    if (!right) std::abort();
  };
  try {
    const std::vector<int32_t> tokens = tokenizer.encode(text, {.parse_special = (input[0] & 4) != 0});
    require(valid);
    if (!nfc) require(tokenizer.decode(tokens) == text);
    Utf8Stream stream;
    std::string streamed;
    for (const int32_t token : tokens) {
      const std::string part = stream.push(tokenizer.decode(token));
      require(!first_invalid_utf8(part));
      streamed += part;
    }
    require(stream.finish().empty());
    require(streamed == tokenizer.decode(tokens));
  } catch (const InputError&) {
    require(!valid);
  }
}

}  // namespace fulmen::fuzz
