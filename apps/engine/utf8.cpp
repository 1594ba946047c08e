#include "engine/utf8.hpp"

#include <cstring>

namespace fulmen::engine {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

size_t ascii_prefix(std::string_view text) {
  size_t length = 0;
  for (uint64_t word; length + 8 <= text.size(); length += 8) {
    std::memcpy(&word, text.data() + length, 8);
    if (word & 0x8080808080808080u) break;
  }
  while (length < text.size() && static_cast<unsigned char>(text[length]) < 0x80) ++length;
  return length;
}

}  // namespace

Utf8Step utf8_step(std::string_view text) {
  using Kind = Utf8Step::Kind;
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {Kind::code_point, lead, 1};
  if (lead < 0xc2 || lead > 0xf4) return {Kind::invalid, 0, 1};
  const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and what lies beyond U+10FFFF.
  const uint32_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const uint32_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  uint32_t code_point = lead & (0xffu >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Kind::cut_short, 0, i};
    const bool fits = i == 1 ? byte(i) >= low && byte(i) <= high : (byte(i) & 0xc0) == 0x80;
    if (!fits) return {Kind::invalid, 0, i};
    code_point = code_point << 6 | (byte(i) & 0x3f);
  }
  return {Kind::code_point, code_point, length};
}

std::optional<size_t> first_invalid_utf8(std::string_view text) {
  for (size_t offset = 0;;) {
    offset += ascii_prefix(text.substr(offset));
    if (offset == text.size()) return std::nullopt;
    const Utf8Step step = utf8_step(text.substr(offset));
    if (step.kind != Utf8Step::Kind::code_point) return offset;
    offset += step.bytes;
  }
}

void append_utf8(std::string& out, uint32_t code_point) {
  const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
  const auto put_rest = [&](int shift) {
    for (; shift >= 0; shift -= 6) put(0x80 | (code_point >> shift & 0x3f));
  };
  if (code_point < 0x80) return put(code_point);
  if (code_point < 0x800) return put(0xc0 | code_point >> 6), put_rest(0);
  if (code_point < 0x10000) return put(0xe0 | code_point >> 12), put_rest(6);
  return put(0xf0 | code_point >> 18), put_rest(12);
}

std::string Utf8Stream::push(std::string_view bytes) {
  waiting_ += bytes;
  std::string out;
  std::string_view rest = waiting_;
  while (!rest.empty()) {
    const Utf8Step step = utf8_step(rest);
    if (step.kind == Utf8Step::Kind::cut_short) break;
    out += step.kind == Utf8Step::Kind::code_point ? rest.substr(0, step.bytes) : kReplacement;
    rest.remove_prefix(step.bytes);
  }
  waiting_.erase(0, waiting_.size() - rest.size());
  return out;
}

std::string Utf8Stream::finish() {
  const bool cut_short = !waiting_.empty();
  waiting_.clear();
  return cut_short ? std::string(kReplacement) : std::string();
}

}  // namespace fulmen::engine
