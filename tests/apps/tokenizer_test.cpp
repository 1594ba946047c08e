#include "engine/tokenizer.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "apps/model_file.hpp"
#include "engine/input_error.hpp"
#include "engine/merge_table.hpp"
#include "engine/pre_tokenizer.hpp"

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

}  // namespace
}  // namespace fulmen::engine
