#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fulmen::engine {

/// What stands at the start of a text: a code point, the first bytes of one, or bytes that begin none.
struct Utf8Step {
  enum class Kind { code_point, cut_short, invalid };
  Kind kind;
  uint32_t code_point;  // where kind says so
  size_t bytes;         // at least 1; of an invalid sequence its longest valid start, as Unicode recommends
};

/// text must not be empty.
Utf8Step utf8_step(std::string_view text);

/// Offset of the first byte that isn't part of valid UTF-8.
std::optional<size_t> first_invalid_utf8(std::string_view text);

void append_utf8(std::string& out, uint32_t code_point);

/// Turns bytes that come in pieces into whole UTF-8: a sequence cut between two pieces waits for its rest, an
/// invalid one becomes U+FFFD.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);
  /// What still waited, as U+FFFD; the stream can be used again.
  std::string finish();

 private:
  std::string waiting_;  // the first bytes of a code point, at most 3
};

}  // namespace fulmen::engine
