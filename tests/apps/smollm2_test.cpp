// The real model against the numpy forward pass of tests/reference/smollm2_numpy.py, and its bits against themselves.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "apps/model_file.hpp"
#include "engine/cpu_executor.hpp"
#include "engine/engine.hpp"

namespace fulmen::engine {
namespace {

using Json = nlohmann::json;

const Json& golden() {
  static const Json file = Json::parse(std::ifstream(FULMEN_SOURCE_DIR "/tests/data/smollm2_golden.json"));
  return file;
}

// Where the reference's two best are closer than this, either is right.
constexpr double kTie = 1e-3;

TEST(SmolLM2, LogitsAgreeWithNumpy) {
  FULMEN_NEED_MODEL();
  const GgufFile file = GgufFile::open(test::model_path());
  const ModelConfig config = read_model_config(file);
  Pool pool(2);
  ExecutorLimits limits;
  limits.num_pages = 8;
  limits.max_rows = 64;
  limits.max_context = 64;
  CpuExecutor executor(config, file, pool, limits);

  std::vector<int32_t> positions(64), qo_indptr = {0, 64}, kv_len = {64}, page_indptr = {0, 4}, pages = {5, 0, 7, 2};
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<int64_t> slots;
  for (int i = 0; i < 64; ++i) slots.push_back(pages[static_cast<size_t>(i / 16)] * 16 + i % 16);
  const std::vector<Sampling> greedy(64);
  const std::vector<int32_t> vocab_ids = golden()["vocab_ids"];
  ASSERT_EQ(golden()["prefill"].size(), 8u);
  double worst = 0;
  int ties = 0;
  for (const Json& prompt : golden()["prefill"]) {
    const std::vector<int32_t> tokens = prompt["tokens"];
    std::vector<int32_t> next(64);
    executor.run({tokens, positions, slots, qo_indptr, kv_len, page_indptr, pages, positions, greedy, {}, {}, {}, {}}, next);
    for (size_t p = 0; p < prompt["positions"].size(); ++p) {
      const double range = prompt["max"][p].get<double>() - prompt["min"][p].get<double>();
      const size_t row = prompt["positions"][p];
      for (size_t v = 0; v < vocab_ids.size(); ++v) {
        const double got = executor.logits()[row * static_cast<size_t>(config.vocab) + static_cast<size_t>(vocab_ids[v])];
        worst = std::max(worst, std::abs(got - prompt["logits"][p][v].get<double>()) / range);
      }
    }
    for (size_t row = 0; row < 64; ++row) {
      if (prompt["gap"][row].get<double>() > kTie) EXPECT_EQ(next[row], prompt["argmax"][row]) << "position " << row;
      else ++ties;
    }
  }
  RecordProperty("worst_error_of_range", std::to_string(worst));
  std::printf("largest difference: %.2e of the logits' range; %d ties\n", worst, ties);
  EXPECT_LT(worst, 2e-2);
  EXPECT_LT(ties, 64);
}

TEST(SmolLM2, GreedyTokensAgreeWithNumpy) {
  FULMEN_NEED_MODEL();
  EngineOptions options;
  options.model_path = test::model_path();
  options.threads = 2;
  Engine engine(options);
  std::vector<Request*> requests;
  for (const Json& prompt : golden()["greedy"]) {
    RequestOptions request;
    request.prompt = engine.tokenizer().encode(prompt["text"].get<std::string>(), {.parse_special = true});
    EXPECT_EQ(request.prompt, prompt["prompt_tokens"].get<std::vector<int32_t>>());
    request.max_tokens = 64;
    request.ignore_end = true;
    requests.push_back(&engine.submit(request));
  }
  ASSERT_EQ(requests.size(), 8u);
  while (engine.step()) {
  }
  size_t compared = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Json& prompt = golden()["greedy"][i];
    ASSERT_EQ(requests[i]->made().size(), 64u);
    for (size_t n = 0; n < 64; ++n, ++compared) {
      if (prompt["gap"][n].get<double>() <= kTie && requests[i]->made()[n] != prompt["tokens"][n]) break;
      EXPECT_EQ(requests[i]->made()[n], prompt["tokens"][n]) << "prompt " << i << ", token " << n;
    }
  }
  std::printf("%zu of 512 tokens compared\n", compared);
  EXPECT_GT(compared, 400u);
}

// ------------------------------------------------------------------------------------- the same bits, always

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<std::vector<float>> logits;
  explicit Answer(const Request& r) : tokens(r.made().begin(), r.made().end()), logits(r.logits) {}

  bool operator==(const Answer& other) const {
    if (tokens != other.tokens || logits.size() != other.logits.size()) return false;
    for (size_t i = 0; i < logits.size(); ++i)
      if (std::memcmp(logits[i].data(), other.logits[i].data(), logits[i].size() * sizeof(float)) != 0) return false;
    return true;
  }
};

EngineOptions real_options() {
  EngineOptions options;
  options.model_path = test::model_path();
  options.threads = 2;
  options.context = 1024;
  return options;
}

// 300 tokens: past the first chunk of keys that attention's canon merges at.
RequestOptions the_request(uint32_t salt = 0, int64_t max_tokens = 10) {
  RequestOptions request;
  for (uint32_t i = 0; i < 300; ++i) request.prompt.push_back(static_cast<int32_t>((i * 7919 + salt * 104729) % 49000));
  request.max_tokens = max_tokens;
  request.ignore_end = request.keep_logits = true;
  request.sampling = {.temperature = 0.9f, .top_p = 0.95f, .seed = 7};
  return request;
}

Answer answer_of(Engine& engine, Request& request) {
  while (engine.step()) {
  }
  EXPECT_EQ(request.finish, Finish::kLength);
  return Answer(request);
}

Answer alone(const EngineOptions& options) {
  Engine engine(options);
  return answer_of(engine, engine.submit(the_request()));
}

TEST(SmolLM2, SameBitsInAnyCompany) {
  FULMEN_NEED_MODEL();
  const Answer expected = alone(real_options());
  for (const int chunk : {1, 63, 64, 65}) {
    EngineOptions options = real_options();
    options.chunk = chunk;
    options.threads = chunk % 2 + 1;
    EXPECT_TRUE(alone(options) == expected) << "chunks of " << chunk;
  }
  {
    Engine engine(real_options());
    for (uint32_t i = 1; i < 4; ++i) engine.submit(the_request(i));
    RequestOptions beginning = the_request();
    beginning.prompt.resize(280);
    engine.submit(beginning);
    Request& request = engine.submit(the_request());
    EXPECT_TRUE(answer_of(engine, request) == expected) << "among others, its prefix shared";
    EXPECT_EQ(request.sequence.shared_tokens, 272);
  }
  {
    EngineOptions options = real_options();
    options.pages = 39;  // 624 tokens, two requests need 640
    Engine engine(options);
    RequestOptions other = the_request(1, 60);
    engine.submit(other);
    Request& request = engine.submit(the_request());
    EXPECT_TRUE(answer_of(engine, request) == expected) << "preempted";
    EXPECT_GT(request.sequence.preemptions, 0);
  }
}

}  // namespace
}  // namespace fulmen::engine
