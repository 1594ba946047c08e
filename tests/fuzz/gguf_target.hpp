#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/dequantize.hpp"
#include "engine/gguf.hpp"
#include "engine/input_error.hpp"
#include "engine/tokenizer.hpp"

namespace fulmen::fuzz {

/// Any bytes as a GGUF file: opened, everything in it read, or refused with InputError. Returns whether it
/// opened.
inline bool gguf_target(std::span<const uint8_t> input) {
  using namespace fulmen::engine;
  const auto* begin = reinterpret_cast<const std::byte*>(input.data());
  try {
    const GgufFile file = GgufFile::from_memory({begin, begin + input.size()}, "fuzz");
    const auto attempt = [](auto&& read) {
      try {
        read();
      } catch (const InputError&) {
      }
    };
    for (const char* key :
         {"general.architecture", "general.alignment", "words", "types", "factors", "flag", "count"}) {
      attempt([&] { file.string(key); });
      attempt([&] { file.unsigned_integer(key); });
      attempt([&] { file.number(key); });
      attempt([&] { file.boolean(key); });
      attempt([&] { file.strings(key); });
      attempt([&] { file.integers(key); });
      attempt([&] { file.numbers(key); });
    }
    for (const GgufTensor& tensor : file.tensors()) {
      const auto elements = static_cast<size_t>(tensor.row_elements() * tensor.num_rows());
      std::vector<float> wide(elements);
      std::vector<uint16_t> narrow(elements);
      dequantize_to_float(file.tensor(tensor.name), 0, tensor.num_rows(), wide.data());
      dequantize_to_half(tensor, 0, tensor.num_rows(), narrow.data());
    }
    attempt([&] { Tokenizer(file).encode("hello, world"); });
    return true;
  } catch (const InputError&) {
    return false;
  }
}

}  // namespace fulmen::fuzz
