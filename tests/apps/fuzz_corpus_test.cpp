// Runs the fuzz targets without a fuzzer: on the committed corpora, and on seeded mutations of valid input.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "apps/gguf_builder.hpp"
#include "fuzz/gguf_target.hpp"
#include "fuzz/json_prompt_target.hpp"
#include "fuzz/tokenizer_target.hpp"

namespace fulmen {
namespace {

using test::GgufBuilder;

std::span<const uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::vector<std::string> corpus(const std::string& name) {
  std::vector<std::string> out;
  for (const auto& entry :
       std::filesystem::directory_iterator(FULMEN_SOURCE_DIR "/tests/fuzz/corpus/" + name)) {
    std::ifstream file(entry.path(), std::ios::binary);
    out.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return out;
}

/// Has every kind of value and dtype, and a tokenizer.
std::string small_gguf() {
  test::SmallVocabulary vocabulary = test::SmallVocabulary::chat("smollm");
  const engine::TokenizerData data = vocabulary.data();
  std::vector<int32_t> types;
  for (const auto type : data.types) types.push_back(static_cast<int32_t>(type));
  GgufBuilder builder;
  builder.number<uint32_t>("general.alignment", GgufBuilder::u32, 32)
      .text("general.architecture", "llama")
      .number<uint64_t>("count", GgufBuilder::u64, 2)
      .number<double>("factor", GgufBuilder::f64, 0.5)
      .number<uint8_t>("flag", GgufBuilder::boolean, 1)
      .texts("words", {"a", "bc", ""})
      .numbers<int16_t>("types", GgufBuilder::i16, {1, -2, 3})
      .numbers<float>("factors", GgufBuilder::f32, {1, 2})
      .text("tokenizer.ggml.model", "gpt2")
      .text("tokenizer.ggml.pre", "smollm")
      .texts("tokenizer.ggml.tokens", {data.tokens.begin(), data.tokens.end()})
      .texts("tokenizer.ggml.merges", {data.merges.begin(), data.merges.end()})
      .numbers<int32_t>("tokenizer.ggml.token_type", GgufBuilder::i32, types)
      .number<uint32_t>("tokenizer.ggml.eos_token_id", GgufBuilder::u32, 2)
      .tensor("f32", 0, {3, 2}, std::string(24, '\x01'))
      .tensor("f16", 1, {5}, std::string(10, '\x02'))
      .tensor("bf16", 30, {1, 2, 3, 1}, std::string(12, '\x03'))
      .tensor("q4_0", 2, {32, 2}, std::string(36, '\x04'))
      .tensor("q4_1", 3, {64}, std::string(40, '\x05'))
      .tensor("q8_0", 8, {32}, std::string(34, '\x06'));
  return builder.text();
}

/// Some bytes changed, a word overwritten by an extreme one, a piece cut out or doubled.
std::string mutated(std::string text, std::mt19937& random) {
  const uint64_t kExtreme[] = {0,          1,     0x7fffffff, 0xffffffff, 1ull << 31,
                               1ull << 32, ~0ull, ~0ull >> 1, 1ull << 61, ~0ull - 31};
  for (uint32_t edits = 1 + random() % 3; edits > 0 && text.size() > 16; --edits) {
    const size_t at = random() % (text.size() - 8);
    const size_t length = random() % std::min<size_t>(64, text.size() - at);
    switch (random() % 5) {
      case 0:
        text[at] = static_cast<char>(random());
        break;
      case 1:
        text[at] ^= static_cast<char>(1 << random() % 8);
        break;
      case 2:
        std::memcpy(text.data() + at, &kExtreme[random() % 10], random() % 2 ? 4 : 8);
        break;
      case 3:
        text.erase(at, length);
        break;
      case 4:
        text.insert(at, text.substr(at, length));
        break;
    }
  }
  return text;
}

TEST(GgufFuzz, TakesTheCorpus) {
  const std::vector<std::string> inputs = corpus("gguf");
  EXPECT_GE(inputs.size(), 5u);
  for (const std::string& input : inputs) fuzz::gguf_target(bytes_of(input));
}

TEST(GgufFuzz, TakesMutationsOfAValidFile) {
  const std::string valid = small_gguf();
  ASSERT_TRUE(fuzz::gguf_target(bytes_of(valid)));
  ASSERT_EQ(engine::Tokenizer(engine::GgufFile::from_memory(GgufBuilder::to_bytes(valid), "x"))
                .encode("hello")
                .size(),
            1u);
  std::mt19937 random(20);
  int opened = 0;
  // Most of the file is vocabulary, whose changes matter little: half of the edits go to a file without one.
  GgufBuilder plain;
  plain.texts("words", {"a", "bc"})
      .number<uint32_t>("count", GgufBuilder::u32, 2)
      .tensor("t", 0, {3, 2}, std::string(24, '\x01'));
  plain.tensor("u", 2, {32}, std::string(18, '\x02'));
  for (int round = 0; round < 2000; ++round) {
    opened += fuzz::gguf_target(bytes_of(mutated(round % 2 ? valid : plain.text(), random)));
  }
  EXPECT_GT(opened, 100);         // some changes are harmless
  EXPECT_LT(opened, 2000 - 500);  // and many are not
}

TEST(TokenizerFuzz, TakesTheCorpus) {
  const std::vector<std::string> inputs = corpus("tokenizer");
  EXPECT_GE(inputs.size(), 5u);
  for (const std::string& input : inputs) fuzz::tokenizer_target(bytes_of(input));
}

TEST(TokenizerFuzz, TakesMutationsOfText) {
  const std::string text =
      "It's 12345 <|im_start|>h\u00e9llo\n\n  \u4eba\u3000\U0001f680\u0301 <tool>hello\t<|im_end|> \u0663x  ";
  std::mt19937 random(21);
  for (int round = 0; round < 4000; ++round) {
    const std::string input = static_cast<char>(random() % 8) + mutated(text, random);
    fuzz::tokenizer_target(bytes_of(input));
  }
}

TEST(JsonPromptFuzz, TakesTheCorpus) {
  const std::vector<std::string> inputs = corpus("json_prompt");
  EXPECT_GE(inputs.size(), 5u);
  int good = 0;
  for (const std::string& input : inputs) good += fuzz::json_prompt_target(bytes_of(input));
  EXPECT_EQ(good, 3);
}

TEST(JsonPromptFuzz, TakesMutations) {
  std::mt19937 random(22);
  int good = 0;
  const std::vector<std::string> inputs = corpus("json_prompt");
  for (int round = 0; round < 4000; ++round)
    good += fuzz::json_prompt_target(bytes_of(mutated(inputs[random() % inputs.size()], random)));
  EXPECT_GT(good, 20);
}

}  // namespace
}  // namespace fulmen
