#include "engine/utf8.hpp"

#include <gtest/gtest.h>

namespace fulmen::engine {
namespace {

/// Validity by decoding and writing again, independent of the ranges in the reader's tables.
bool is_one_code_point(std::string_view bytes) {
  const auto b = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const size_t length = bytes.size();
  const unsigned char marks[] = {0, 0x00, 0xc0, 0xe0, 0xf0}, masks[] = {0, 0x80, 0xe0, 0xf0, 0xf8};
  if (length < 1 || length > 4 || (b(0) & masks[length]) != marks[length]) return false;
  uint32_t code_point = b(0) & ~masks[length] & 0xffu;
  for (size_t i = 1; i < length; ++i) {
    if ((b(i) & 0xc0) != 0x80) return false;
    code_point = code_point << 6 | (b(i) & 0x3fu);
  }
  const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  return code_point >= least[length] && code_point <= 0x10ffff &&
         !(code_point >= 0xd800 && code_point <= 0xdfff);
}

TEST(Utf8, AcceptsExactlyTheCodePoints) {
  uint32_t count = 0;
  for (uint32_t code_point = 0; code_point <= 0x10ffff; ++code_point) {
    if (code_point >= 0xd800 && code_point <= 0xdfff) continue;
    std::string text;
    append_utf8(text, code_point);
    const Utf8Step step = utf8_step(text);
    ASSERT_EQ(step.kind, Utf8Step::Kind::code_point) << code_point;
    ASSERT_EQ(step.code_point, code_point);
    ASSERT_EQ(step.bytes, text.size());
    count += is_one_code_point(text);
  }
  EXPECT_EQ(count, 0x110000u - 0x800u);
}

TEST(Utf8, RefusesEverythingElse) {
  // All sequences of a lead byte and of representatives of every class of following bytes.
  constexpr unsigned char kNext[] = {0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xff};
  for (int lead = 0x80; lead < 256; ++lead) {
    for (const unsigned char second : kNext) {
      for (const unsigned char third : kNext) {
        for (const unsigned char fourth : kNext) {
          const char bytes[] = {static_cast<char>(lead), static_cast<char>(second), static_cast<char>(third),
                                static_cast<char>(fourth)};
          bool expected = false;
          for (size_t length = 1; length <= 4; ++length) expected |= is_one_code_point({bytes, length});
          ASSERT_EQ(utf8_step({bytes, 4}).kind == Utf8Step::Kind::code_point, expected)
              << lead << " " << +second;
        }
      }
    }
  }
}

TEST(Utf8, NamesTheFirstInvalidByte) {
  EXPECT_EQ(first_invalid_utf8(""), std::nullopt);
  EXPECT_EQ(first_invalid_utf8("plain ascii of some length, \u00fc, \u4eba, \U0001f680"), std::nullopt);
  EXPECT_EQ(first_invalid_utf8("0123456789ab\xff"), 12u);
  EXPECT_EQ(first_invalid_utf8("ab\xc0\x80"), 2u);
  EXPECT_EQ(first_invalid_utf8("\xed\xa0\x80"), 0u);      // a surrogate
  EXPECT_EQ(first_invalid_utf8("\u00fc\xe4\xba"), 2u);    // cut short
  EXPECT_EQ(first_invalid_utf8("\xf4\x90\x80\x80"), 0u);  // above U+10FFFF
}

TEST(Utf8Stream, EmitsWholeCodePoints) {
  const std::string text = "a\u00fc\u4eba\U0001f680 z";
  for (size_t piece = 1; piece <= text.size(); ++piece) {
    Utf8Stream stream;
    std::string out;
    for (size_t at = 0; at < text.size(); at += piece) {
      const std::string part = stream.push(std::string_view(text).substr(at, piece));
      EXPECT_EQ(first_invalid_utf8(part), std::nullopt);
      out += part;
    }
    EXPECT_EQ(out, text) << piece;
    EXPECT_EQ(stream.finish(), "");
  }
}

TEST(Utf8Stream, ReplacesWhatIsInvalid) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xff"
                        "b"),
            "a\ufffd"
            "b");
  EXPECT_EQ(stream.push("\xf0\x9f"), "");
  EXPECT_EQ(stream.push("x"), "\ufffdx");  // what waited can no longer become a character
  EXPECT_EQ(stream.push("\xe4\xba"), "");
  EXPECT_EQ(stream.finish(), "\ufffd");
  EXPECT_EQ(stream.push("\xc3"), "");
  EXPECT_EQ(stream.push("\xbc"), "\u00fc");
}

}  // namespace
}  // namespace fulmen::engine
