#include "engine/tokenizer.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "apps/model_file.hpp"
#include "apps/small_vocabulary.hpp"
#include "engine/input_error.hpp"
#include "engine/merge_table.hpp"
#include "engine/pre_tokenizer.hpp"
#include "engine/utf8.hpp"

namespace fulmen::engine {
namespace {

TEST(SmolLm2Tokenizer, GivesTheTokensOfAllLines) {
  FULMEN_NEED_MODEL();
  const Tokenizer tokenizer(GgufFile::open(test::model_path()));
  std::ifstream lines(FULMEN_SOURCE_DIR "/tests/data/smollm2_tokens.jsonl");
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const auto json = nlohmann::json::parse(line);
    const auto text = json["text"].get<std::string>();
    const auto expected = json["tokens"].get<std::vector<int32_t>>();
    ASSERT_EQ(tokenizer.encode(text), expected) << "line " << count + 1 << ": " << text;
    ASSERT_EQ(tokenizer.decode(expected), text) << "line " << count + 1;
  }
  EXPECT_EQ(count, 4000);
}

TEST(SmolLm2Tokenizer, KnowsItsSpecialTokens) {
  FULMEN_NEED_MODEL();
  const Tokenizer tokenizer(GgufFile::open(test::model_path()));
  EXPECT_EQ(tokenizer.vocab_size(), 49152);
  EXPECT_EQ(tokenizer.find("<|im_end|>"), 2);
  EXPECT_TRUE(tokenizer.is_control(2));
  EXPECT_TRUE(tokenizer.ends_generation(2));
  EXPECT_TRUE(tokenizer.ends_generation(0));
  EXPECT_FALSE(tokenizer.ends_generation(1));
  EXPECT_FALSE(tokenizer.add_bos());
  const std::vector<int32_t> plain = tokenizer.encode("<|im_end|>");
  EXPECT_GT(plain.size(), 1u);
  for (const int32_t token : plain) EXPECT_FALSE(tokenizer.is_control(token));
  EXPECT_EQ(tokenizer.encode("a<|im_end|>", {.parse_special = true}).back(), 2);
}

TEST(SmolLm2Tokenizer, AgreesWithTheNumpyReference) {
  FULMEN_NEED_MODEL();
  const Tokenizer tokenizer(GgufFile::open(test::model_path()));
  std::ifstream file(FULMEN_SOURCE_DIR "/tests/data/smollm2_golden.json");
  const auto golden = nlohmann::json::parse(file);
  ASSERT_EQ(golden["greedy"].size(), 8u);
  for (const auto& prompt : golden["greedy"]) {
    EXPECT_EQ(tokenizer.encode(prompt["text"].get<std::string>(), {.parse_special = true}),
              prompt["prompt_tokens"].get<std::vector<int32_t>>());
  }
}

TEST(SmolLm2Tokenizer, IsLinearInLongWords) {
  FULMEN_NEED_MODEL();
  const Tokenizer tokenizer(GgufFile::open(test::model_path()));
  std::mt19937 random(1);
  for (const std::string_view alphabet : {"a", "abcdefghij", " ", "\n", "-", "7"}) {
    std::string text;
    while (text.size() < 1'000'000) text += alphabet[random() % alphabet.size()];
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
    // A quadratic way would take minutes.
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20)) << alphabet;
  }
}

std::vector<std::string> split(std::string_view pre, std::string_view text) {
  std::vector<std::string> out;
  PreTokenizer(pre).split(text, [&](std::string_view word) { out.emplace_back(word); });
  return out;
}
using Words = std::vector<std::string>;

TEST(PreTokenizer, CutsAsGpt2) {
  EXPECT_EQ(split("gpt2", "Hello  world's 123 4!?\n\n x"),
            (Words{"Hello", " ", " world", "'s", " 123", " 4", "!?", "\n\n", " x"}));
  EXPECT_EQ(split("gpt2", "a  "), (Words{"a", "  "}));
  EXPECT_EQ(split("gpt2", "a\u00a0b"), (Words{"a", "\u00a0", "b"}));
}

TEST(PreTokenizer, CutsAsSmolLm) {
  EXPECT_EQ(split("smollm", "in 2024, x"), (Words{"in", " ", "2", "0", "2", "4", ",", " x"}));
  EXPECT_EQ(split("smollm", "a  5   b"), (Words{"a", "  ", "5", "  ", " b"}));
  EXPECT_EQ(split("smollm", "\u00bd\u0663x"),
            (Words{"\u00bd", "\u0663", "x"}));  // any number character is a digit
}

TEST(PreTokenizer, CutsAsLlama3) {
  EXPECT_EQ(split("llama-bpe", "It'S 12345 (foo)\r\n  bar"),
            (Words{"It", "'S", " ", "123", "45", " (", "foo", ")\r\n", " ", " bar"}));
  EXPECT_EQ(split("llama3", "a \n \n b"), (Words{"a", " \n \n", " b"}));
}

TEST(PreTokenizer, CutsAsQwen2) {
  EXPECT_EQ(split("qwen2", "x 123\n!"), (Words{"x", " ", "1", "2", "3", "\n", "!"}));
  EXPECT_EQ(PreTokenizer("qwen2").normalized("u\u0308"), "\u00fc");  // NFC
  EXPECT_EQ(PreTokenizer("qwen2").normalized(std::string("a\0b", 3)), std::string("a\0b", 3));
  EXPECT_EQ(PreTokenizer("smollm").normalized("u\u0308"), "u\u0308");
}

TEST(PreTokenizer, KeepsUnicodeSpacesApart) {
  // U+180E was white space in old Unicode and isn't any more; U+2003 is.
  EXPECT_EQ(split("gpt2", "a\u180eb"), (Words{"a", "\u180e", "b"}));
  EXPECT_EQ(split("gpt2", "!\u180e!"), (Words{"!\u180e!"}));
  EXPECT_EQ(split("gpt2", "!\u2003!"), (Words{"!", "\u2003", "!"}));
}

TEST(PreTokenizer, TakesAnyText) {
  std::mt19937 random(2);
  for (const char* pre : {"gpt2", "smollm", "llama3", "qwen2"}) {
    const PreTokenizer cut(pre);
    for (int round = 0; round < 300; ++round) {
      std::string text, joined;
      for (int i = 0; i < 40; ++i) {
        const uint32_t limits[] = {0x80, 0x100, 0x3000, 0x10000, 0x110000};
        uint32_t code_point = static_cast<uint32_t>(random() % limits[random() % 5]);
        if (code_point >= 0xd800 && code_point < 0xe000) code_point = ' ';
        append_utf8(text, code_point);
      }
      cut.split(text, [&](std::string_view word) {
        EXPECT_FALSE(word.empty());
        joined += word;
      });
      ASSERT_EQ(joined, text);
    }
  }
}

TEST(PreTokenizer, ListsThoseKnown) {
  try {
    PreTokenizer("deepseek-v9");
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "'tokenizer.ggml.pre': expected one of smollm, starcoder, gpt2, gpt-2, llama-bpe, llama3, "
                 "llama-v3, qwen2; found 'deepseek-v9'");
  }
}

/// The definition: again and again the leftmost pair of the lowest rank.
void merge_plainly(const MergeTable& table, std::vector<int32_t>& word) {
  for (;;) {
    int32_t lowest = MergeTable::kNoRank;
    size_t at = 0;
    for (size_t i = 0; i + 1 < word.size(); ++i) {
      if (table.rank(word[i], word[i + 1]) < lowest) lowest = table.rank(word[i], word[i + 1]), at = i;
    }
    if (lowest == MergeTable::kNoRank) return;
    word[at] = table.merged(lowest);
    word.erase(word.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

TEST(MergeTable, MergesByRankThenPlace) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    // Tokens 0 to 2 are letters, each merge makes a new one of two that exist.
    const size_t num_merges = 1 + random() % 40;
    MergeTable table(num_merges);
    int32_t next = 3;
    for (size_t i = 0; i < num_merges; ++i) {
      const auto left = static_cast<int32_t>(random() % static_cast<uint32_t>(next));
      const auto right = static_cast<int32_t>(random() % static_cast<uint32_t>(next));
      if (table.rank(left, right) == MergeTable::kNoRank) {
        ASSERT_TRUE(table.add(left, right, next++));
      }
    }
    for (const size_t length : {0, 1, 2, 7, 48, 49, 200}) {
      std::vector<int32_t> word(length);
      for (int32_t& token : word) token = static_cast<int32_t>(random() % 3);
      std::vector<int32_t> expected = word;
      merge_plainly(table, expected);
      table.apply(word);
      ASSERT_EQ(word, expected) << "round " << round << ", length " << length;
    }
  }
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Tokenizer, FindsSpecialTokensOnlyWhenAsked) {
  const Tokenizer tokenizer = test::SmallVocabulary::chat().tokenizer();
  const int32_t start = *tokenizer.find("<|im_start|>"), part = *tokenizer.find("<|im"),
                tool = *tokenizer.find("<tool>");
  const int32_t hello = *tokenizer.find("hello");
  using Tokens = std::vector<int32_t>;
  EXPECT_EQ(tokenizer.encode("hello<|im_start|>hello", {.parse_special = true}),
            (Tokens{hello, start, hello}));
  EXPECT_EQ(tokenizer.encode("<|im<|im_start|>", {.parse_special = true}),
            (Tokens{part, start}));  // the longest
  EXPECT_EQ(tokenizer.encode("<|im_start|>").size(), 12u);
  EXPECT_EQ(tokenizer.encode("hello<tool>hello"), (Tokens{hello, tool, hello}));  // user-defined: always
}

TEST(Tokenizer, KeepsPlainPartsPlain) {
  const Tokenizer tokenizer = test::SmallVocabulary::chat("llama3").tokenizer();
  const int32_t start = *tokenizer.find("<|im_start|>"), two_breaks = *tokenizer.find("\n\n");
  const TextPart parts[] = {{"<|im_start|>", true}, {"\n", false}, {"\n", false}, {"<|im_start|>", false}};
  const std::vector<int32_t> tokens = tokenizer.encode(parts);
  ASSERT_EQ(tokens.size(), 14u);
  EXPECT_EQ(tokens[0], start);
  EXPECT_EQ(tokens[1], two_breaks);  // plain neighbours are one text
  EXPECT_EQ(tokenizer.decode(std::span(tokens).subspan(2)), "<|im_start|>");
  for (size_t i = 1; i < tokens.size(); ++i) EXPECT_FALSE(tokenizer.is_control(tokens[i]));
  const TextPart unknown[] = {{"<|no|>", true}};
  EXPECT_EQ(error_of([&] { tokenizer.encode(unknown); }),
            "expected '<|no|>' to be a token of the model's vocabulary; it isn't");
}

TEST(Tokenizer, TakesWholeWordsFirstWhereTheModelDoes) {
  // "ab" is a token, but no merge makes it.
  for (const char* pre : {"llama3", "gpt2"}) {
    test::SmallVocabulary vocabulary(pre);
    const Tokenizer tokenizer = vocabulary.add("ab", test::SmallVocabulary::Type::normal).tokenizer();
    EXPECT_EQ(tokenizer.encode("ab").size(), std::string_view(pre) == "llama3" ? 1u : 2u) << pre;
  }
}

TEST(Tokenizer, RefusesWhatIsNotUtf8) {
  const Tokenizer tokenizer = test::SmallVocabulary::chat().tokenizer();
  EXPECT_EQ(error_of([&] { tokenizer.encode("ok \xff"); }),
            "text: expected UTF-8, found byte 0xff at offset 3");
  EXPECT_EQ(error_of([&] { tokenizer.encode("\xe4\xba"); }),
            "text: expected UTF-8, found byte 0xe4 at offset 0");
  EXPECT_TRUE(tokenizer.encode("").empty());
  const std::string zero("a\0b", 3);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(zero)), zero);
}

TEST(Tokenizer, RefusesTokensOutsideTheVocabulary) {
  const Tokenizer tokenizer = test::SmallVocabulary().tokenizer();
  EXPECT_EQ(tokenizer.decode(255).size(), 1u);
  EXPECT_THROW(tokenizer.decode(256), std::out_of_range);
  EXPECT_THROW(tokenizer.decode(-1), std::out_of_range);
  EXPECT_FALSE(tokenizer.is_control(-1));
  EXPECT_FALSE(tokenizer.is_control(256));
}

TEST(Tokenizer, RefusesBrokenVocabularies) {
  using test::SmallVocabulary;
  const auto refuse = [](const SmallVocabulary& vocabulary) {
    return error_of([&] { vocabulary.tokenizer(); });
  };
  EXPECT_NE(refuse(SmallVocabulary().merge_as_is("a zz"))
                .find("merge 0 ('a zz'): expected tokens of the vocabulary, found 'zz'"),
            std::string::npos);
  EXPECT_NE(refuse(SmallVocabulary().merge_as_is("a b")).find("found 'ab'"), std::string::npos);
  for (const char* merge : {"ab", " a", "a ", ""}) {
    EXPECT_NE(refuse(SmallVocabulary().merge_as_is(merge)).find("expected two tokens with a space between"),
              std::string::npos);
  }
  EXPECT_NE(refuse(SmallVocabulary().merge("a", "b").merge("a", "b")).find("merge 1 ('a b') stands twice"),
            std::string::npos);
  EXPECT_NE(refuse(SmallVocabulary().add("a", SmallVocabulary::Type::control)).find("token 'a' stands twice"),
            std::string::npos);
  TokenizerData nothing;
  nothing.pre = "gpt2";
  EXPECT_NE(error_of([&] { Tokenizer{nothing}; }).find("found 0 tokens"), std::string::npos);
}

}  // namespace
}  // namespace fulmen::engine
