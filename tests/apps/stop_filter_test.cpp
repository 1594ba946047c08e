#include "engine/stop_filter.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

namespace fulmen::engine {
namespace {

/// All that is shown when the text comes in pieces of the given sizes.
std::string shown(const std::vector<std::string>& stops, const std::string& text, size_t piece) {
  StopFilter filter(stops);
  std::string out;
  for (size_t at = 0; at < text.size() && !filter.stopped(); at += piece) out += filter.push(text.substr(at, piece));
  return out + filter.finish();
}

TEST(StopFilter, CutsBeforeTheStopString) {
  for (const size_t piece : {1, 2, 3, 100}) {
    EXPECT_EQ(shown({"END"}, "one END two", piece), "one ") << piece;
    EXPECT_EQ(shown({"END"}, "one EN", piece), "one EN") << piece;
    EXPECT_EQ(shown({"END"}, "EEND", piece), "E") << piece;
    EXPECT_EQ(shown({"\n\n", "xyz"}, "a\nb\n\nc", piece), "a\nb") << piece;
    EXPECT_EQ(shown({}, "all of it", piece), "all of it") << piece;
    EXPECT_EQ(shown({""}, "all of it", piece), "all of it") << piece;
  }
}

TEST(StopFilter, ShowsWhatCanNoLongerBecomeAStop) {
  StopFilter filter({"abc"});
  EXPECT_EQ(filter.push("xab"), "x");
  EXPECT_EQ(filter.push("d"), "abd");
  EXPECT_EQ(filter.push("ab"), "");
  EXPECT_EQ(filter.push("c more"), "");
  EXPECT_TRUE(filter.stopped());
  EXPECT_EQ(filter.push("more"), "");
  EXPECT_EQ(filter.finish(), "");
}

TEST(StopFilter, PiecesDontMatter) {
  EXPECT_TRUE(rc::check([] {
    const auto letters = rc::gen::container<std::string>(rc::gen::elementOf(std::string("ab")));
    const std::string text = *letters, stop = "b" + *rc::gen::resize(4, letters);
    const std::string expected = text.substr(0, text.find(stop));
    for (const size_t piece : {1, 2, 7}) RC_ASSERT(shown({stop}, text, piece) == expected);
  }));
}

}  // namespace
}  // namespace fulmen::engine
