#include "engine/engine.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "apps/small_model.hpp"
#include "engine/input_error.hpp"

namespace fulmen::engine {
namespace {

using test::SmallModel;
using test::TemporaryFile;

std::vector<int32_t> random_tokens(int64_t count, uint32_t seed, int vocab = 256) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab));
  return tokens;
}

RequestOptions request(std::vector<int32_t> prompt, int64_t max_tokens) {
  RequestOptions options;
  options.prompt = std::move(prompt);
  options.max_tokens = max_tokens;
  options.ignore_end = true;
  options.keep_logits = true;
  return options;
}

void run(Engine& engine) {
  while (engine.step()) {
  }
}

const std::string& small_model_path() {
  static const TemporaryFile file(SmallModel::smollm().gguf().text());
  return file.path();
}

EngineOptions small_options() {
  EngineOptions options;
  options.model_path = small_model_path();
  options.threads = 2;
  options.page_size = 4;
  return options;
}

// The largest difference to the doubles, relative to the range of the logits.
double worst_error(const SmallModel& model, fulmen_dtype kv_dtype) {
  const TemporaryFile file(model.gguf().text());
  EngineOptions options;
  options.model_path = file.path();
  options.kv_dtype = kv_dtype;
  options.threads = 2;
  Engine engine(options);
  Request& r = engine.submit(request(random_tokens(70, 5, model.vocab()), 12));
  run(engine);
  EXPECT_EQ(r.finish, Finish::kLength);
  const std::vector<int32_t> tokens(r.sequence.tokens.begin(), r.sequence.tokens.end() - 1);
  const auto exact = model.logits(tokens);
  double worst = 0;
  for (size_t i = 0; i < r.logits.size(); ++i) {
    const auto& want = exact[exact.size() - r.logits.size() + i];
    const auto [low, high] = std::minmax_element(want.begin(), want.end());
    for (size_t n = 0; n < want.size(); ++n)
      worst = std::max(worst, std::abs(r.logits[i][n] - want[n]) / (*high - *low));
    const auto best = std::max_element(r.logits[i].begin(), r.logits[i].end()) - r.logits[i].begin();
    EXPECT_EQ(best, r.made()[i]) << "greedy sampling takes the largest logit";
  }
  return worst;
}

TEST(Engine, LogitsAgreeWithDoubles) {
  for (const SmallModel& model : {SmallModel::smollm(), SmallModel::qwen2(), SmallModel::llama3()}) {
    EXPECT_LT(worst_error(model, FULMEN_F32), 2e-6) << model.architecture;
    EXPECT_LT(worst_error(model, FULMEN_F16), 2e-3) << model.architecture;
    EXPECT_LT(worst_error(model, FULMEN_BF16), 1.6e-2) << model.architecture;
    // Rounding of the cache is seen, so that the bounds above mean something.
    EXPECT_GT(worst_error(model, FULMEN_BF16), 1e-4) << model.architecture;
  }
}

// ------------------------------------------------------------------------------------- the same bits, always

using Logits = std::vector<std::vector<float>>;

bool same_bits(const Logits& a, const Logits& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i].size() != b[i].size() || std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) return false;
  return true;
}

struct Answer {
  std::vector<int32_t> tokens;
  Logits logits;
  explicit Answer(const Request& r) : tokens(r.made().begin(), r.made().end()), logits(r.logits) {}
  bool operator==(const Answer& other) const { return tokens == other.tokens && same_bits(logits, other.logits); }
};

RequestOptions the_request() {
  RequestOptions options = request(random_tokens(150, 77), 24);
  options.sampling = {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.01f, .seed = 5};
  return options;
}

Answer alone(const EngineOptions& options) {
  Engine engine(options);
  Request& r = engine.submit(the_request());
  run(engine);
  EXPECT_EQ(r.finish, Finish::kLength);
  return Answer(r);
}

TEST(Invariance, RunToRunAndThreads) {
  const Answer expected = alone(small_options());
  EXPECT_TRUE(alone(small_options()) == expected);
  for (const int threads : {1, 3}) {
    EngineOptions options = small_options();
    options.threads = threads;
    EXPECT_TRUE(alone(options) == expected) << threads << " threads";
  }
}

TEST(Invariance, Chunks) {
  const Answer expected = alone(small_options());
  for (const int chunk : {1, 7, 63, 64, 65}) {
    EngineOptions options = small_options();
    options.chunk = chunk;
    EXPECT_TRUE(alone(options) == expected) << "chunks of " << chunk;
  }
}

TEST(Invariance, PageSize) {
  const Answer expected = alone(small_options());
  for (const int page_size : {1, 16, 64}) {
    EngineOptions options = small_options();
    options.page_size = page_size;
    EXPECT_TRUE(alone(options) == expected) << "pages of " << page_size;
  }
}

TEST(Invariance, AmongOthers) {
  const Answer expected = alone(small_options());
  for (const int place : {0, 3, 7}) {
    Engine engine(small_options());
    Request* mine = nullptr;
    for (int i = 0; i < 8; ++i) {
      if (i == place) mine = &engine.submit(the_request());
      else engine.submit(request(random_tokens(10 + 30 * i, 100 + i), 30));
    }
    run(engine);
    EXPECT_TRUE(Answer(*mine) == expected) << "in place " << place;
  }
}

TEST(Invariance, SharedPrefix) {
  const Answer expected = alone(small_options());
  Engine engine(small_options());
  const RequestOptions mine = the_request();
  std::vector<int32_t> other(mine.prompt.begin(), mine.prompt.begin() + 101);
  other.push_back(3);
  engine.submit(request(other, 40));
  Request& r = engine.submit(mine);
  run(engine);
  EXPECT_EQ(r.sequence.shared_tokens, 100);
  EXPECT_TRUE(Answer(r) == expected);
  Request& again = engine.submit(mine);  // from the tree, when the first is gone
  run(engine);
  EXPECT_EQ(again.sequence.shared_tokens, 148);
  EXPECT_TRUE(Answer(again) == expected);
}

// Beginnings of 256 tokens and more are read once for all requests that share them; shorter ones share pages only.
TEST(Invariance, SharedLevels) {
  const std::vector<int32_t> common = random_tokens(300, 4);
  const auto ask = [&](int i) {
    RequestOptions options = request(common, 20);
    for (int k = 0; k <= 5 * i; ++k) options.prompt.push_back(static_cast<int32_t>(i + k));
    return options;
  };
  for (const int page_size : {1, 4, 64, 128}) {
    EngineOptions options = small_options();
    options.page_size = page_size;
    std::vector<Answer> expected;
    for (int i = 0; i < 5; ++i) {
      Engine engine(options);
      Request& r = engine.submit(ask(i));
      run(engine);
      EXPECT_EQ(engine.stats().keys_read_once, 0);
      expected.emplace_back(r);
    }
    Engine engine(options);
    std::vector<Request*> requests;
    for (int i = 0; i < 5; ++i) {
      requests.push_back(&engine.submit(ask(i)));
      engine.submit(request(random_tokens(20 + 80 * i, 50 + i), 10));  // strangers between them
    }
    run(engine);
    for (int i = 0; i < 5; ++i) EXPECT_TRUE(Answer(*requests[i]) == expected[i]) << "request " << i << ", pages of " << page_size;
    EXPECT_GT(engine.stats().keys_read_once, 4 * 256 * 15);
  }
}

TEST(Invariance, Preempted) {
  const Answer expected = alone(small_options());
  for (const bool share : {true, false}) {
    EngineOptions options = small_options();
    options.pages = 52;  // 208 tokens
    options.share_prefixes = share;
    Engine engine(options);
    engine.submit(request(random_tokens(40, 9), 120));
    Request& r = engine.submit(the_request());
    run(engine);
    EXPECT_GT(r.sequence.preemptions, 0);
    EXPECT_TRUE(Answer(r) == expected) << "sharing " << share;
  }
}

// ------------------------------------------------------------------------------------- sampling

TEST(Sampling, SeedsDecide) {
  Engine engine(small_options());
  std::vector<Request*> requests;
  for (const uint64_t seed : {1, 2, 1}) {
    RequestOptions options = request(random_tokens(20, 1), 40);
    options.sampling = {.temperature = 1.5f, .seed = seed};
    requests.push_back(&engine.submit(options));
  }
  run(engine);
  EXPECT_EQ(Answer(*requests[0]).tokens, Answer(*requests[2]).tokens);
  EXPECT_NE(Answer(*requests[0]).tokens, Answer(*requests[1]).tokens);
}

TEST(Sampling, EachRequestHasItsOwnSettings) {
  Engine engine(small_options());
  RequestOptions greedy = request(random_tokens(20, 1), 20), one = greedy, hot = greedy;
  one.sampling = {.temperature = 2, .top_k = 1};
  hot.sampling = {.temperature = 50, .seed = 3};
  Request &a = engine.submit(greedy), &b = engine.submit(one), &c = engine.submit(hot);
  run(engine);
  EXPECT_EQ(Answer(a).tokens, Answer(b).tokens);
  EXPECT_NE(Answer(a).tokens, Answer(c).tokens);
}

// ------------------------------------------------------------------------------------- ends and errors

TEST(Engine, BadRequestsHarmNobody) {
  Engine engine(small_options());
  Request& good = engine.submit(request(random_tokens(20, 1), 5));
  Request& empty = engine.submit(request({}, 5));
  Request& too_long = engine.submit(request(random_tokens(512, 1), 5));
  Request& outside = engine.submit(request({1, 2, 100000}, 5));
  Request& none = engine.submit(request({1}, 0));
  run(engine);
  EXPECT_EQ(good.finish, Finish::kLength);
  for (const Request* r : {&empty, &too_long, &outside, &none}) {
    EXPECT_EQ(r->finish, Finish::kError);
    EXPECT_TRUE(r->made().empty());
  }
  EXPECT_EQ(empty.error, "the prompt is empty");
  EXPECT_EQ(too_long.error, "the prompt has 512 tokens, the context ends at 512 and an answer needs at least one");
  EXPECT_EQ(outside.error.find("token 100000 is outside the vocabulary"), 0u);
}

TEST(Engine, TheContextEndsAnAnswer) {
  EngineOptions options = small_options();
  options.context = 40;
  Engine engine(options);
  Request& r = engine.submit(request(random_tokens(30, 1), 100));
  run(engine);
  EXPECT_EQ(r.finish, Finish::kLength);
  EXPECT_EQ(r.sequence.tokens.size(), 40u);
  EXPECT_THROW(([&] {
                 options.context = 513;
                 Engine too_wide(options);
               })(),
               InputError);
}

TEST(Engine, StopStringsAndTheEndToken) {
  Engine engine(small_options());
  RequestOptions options = request(random_tokens(20, 1), 200);
  Request& free = engine.submit(options);
  run(engine);
  ASSERT_GT(free.text.size(), 40u);
  options.stop = {free.text.substr(20, 5)};
  Request& stopped = engine.submit(options);
  run(engine);
  EXPECT_EQ(stopped.finish, Finish::kStop);
  EXPECT_EQ(stopped.text, free.text.substr(0, free.text.find(options.stop[0])));

  // With the end token among what is drawn, an answer ends there.
  options = request(random_tokens(20, 1), 400);
  options.ignore_end = false;
  std::vector<Request*> requests;
  for (const uint64_t seed : {1, 2, 3, 4, 5, 6, 7, 8}) {
    options.sampling = {.temperature = 60, .seed = seed};
    requests.push_back(&engine.submit(options));
  }
  run(engine);
  int ended = 0;
  for (const Request* r : requests) {
    ended += r->finish == Finish::kEnd;
    EXPECT_EQ(r->text.find("<|im_end|>"), std::string::npos);
    EXPECT_EQ(r->finish == Finish::kEnd, r->made().size() < 400u);
  }
  EXPECT_GT(ended, 0);
}

TEST(Engine, TextIsWholeUtf8) {
  Engine engine(small_options());
  RequestOptions options = request(random_tokens(20, 1), 300);
  options.sampling = {.temperature = 60, .seed = 2};  // all bytes
  Request& r = engine.submit(options);
  while (engine.step()) EXPECT_FALSE(first_invalid_utf8(r.text));
  EXPECT_FALSE(first_invalid_utf8(r.text));
}

TEST(Engine, InterruptedRequestsKeepWhatTheyMade) {
  Engine engine(small_options());
  Request& r = engine.submit(request(random_tokens(20, 1), 100));
  for (int i = 0; i < 10; ++i) engine.step();
  engine.interrupt(r);
  EXPECT_EQ(r.finish, Finish::kInterrupted);
  EXPECT_EQ(r.made().size(), 10u);
  EXPECT_FALSE(engine.step());
  EXPECT_EQ(engine.scheduler().page_use().used(), 0);
}

TEST(Engine, RefusesAModelThatIsNone) {
  EngineOptions options;
  options.model_path = "/nonexistent/model.gguf";
  EXPECT_THROW(Engine{options}, InputError);
  const TemporaryFile text("this is no model");
  options.model_path = text.path();
  EXPECT_THROW(Engine{options}, InputError);
}

}  // namespace
}  // namespace fulmen::engine
