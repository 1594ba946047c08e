#include "bench.hpp"

#include "engine/gemm.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <random>

namespace fulmen::command {
namespace {

using engine::Request;

double seconds_since(engine::Clock::time_point start) {
  return std::chrono::duration<double>(engine::Clock::now() - start).count();
}

struct Samples {
  std::vector<double> seconds;
  double median() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
  double spread() const {
    const auto [least, most] = std::minmax_element(seconds.begin(), seconds.end());
    return (*most - *least) / median();
  }
};

/// Prompts that share nothing with any other, so that no prefix is known.
class RandomPrompts {
 public:
  explicit RandomPrompts(const engine::Engine& engine) : vocab_(engine.model().vocab) {}
  std::vector<int32_t> make(int64_t tokens) {
    std::vector<int32_t> prompt(static_cast<size_t>(tokens));
    for (int32_t& token : prompt) token = static_cast<int32_t>(random_() % static_cast<uint64_t>(vocab_));
    return prompt;
  }

 private:
  int64_t vocab_;
  std::mt19937_64 random_{12345};
};

Request& submit(engine::Engine& engine, std::vector<int32_t> prompt, int64_t max_tokens) {
  engine::RequestOptions options;
  options.prompt = std::move(prompt);
  options.max_tokens = max_tokens;
  options.ignore_end = true;
  return engine.submit(std::move(options));
}

void finish(engine::Engine& engine, const std::vector<Request*>& requests) {
  for (Request* request : requests) engine.forget(*request);
}

/// Seconds of a decode step; with `shared` the requests differ in their last token only.
Samples decode_steps(engine::Engine& engine, RandomPrompts& prompts, int batch, int64_t context, bool shared, int repeats) {
  constexpr int kSteps = 24;
  Samples samples;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    std::vector<Request*> requests;
    const std::vector<int32_t> common = prompts.make(context);
    for (int i = 0; i < batch; ++i) {
      std::vector<int32_t> prompt = shared ? common : prompts.make(context);
      prompt.back() = i;
      requests.push_back(&submit(engine, std::move(prompt), kSteps + 64));
    }
    const auto decodes = [](const Request* r) { return r->sequence.made_tokens() > 0; };
    while (!std::all_of(requests.begin(), requests.end(), decodes)) engine.step();
    engine.step();  // the first step after prefill finds other things in the caches
    const auto start = engine::Clock::now();
    for (int i = 0; i < kSteps; ++i) engine.step();
    samples.seconds.push_back(seconds_since(start) / kSteps);
    finish(engine, requests);
  }
  return samples;
}

BenchCase decode(engine::Engine& engine, RandomPrompts& prompts, int batch, int64_t context, int repeats,
                 double single_tokens_per_s) {
  // The yardstick is taken on both sides of what it measures: other programs may come and go.
  double bandwidth = measure_read_bandwidth(engine.pool());
  const Samples samples = decode_steps(engine, prompts, batch, context, false, repeats);
  bandwidth = (bandwidth + measure_read_bandwidth(engine.pool())) / 2;
  const double bytes = static_cast<double>(engine.executor().weight_bytes() +
                                           batch * context * engine.executor().kv_bytes_per_token());
  BenchCase result("engine.decode", fmt::format("{} x {} tokens", batch, context));
  result.us = samples.median() * 1e6;
  result.spread = samples.spread();
  result.tokens_per_s = batch / samples.median();
  result.gbps = bytes / samples.median() / 1e9;
  if (batch == 1) {
    result.ratio = bytes / samples.median() / bandwidth;
    result.bar = 0.8;
    result.yardstick = "read bandwidth / (2 bytes a weight + cache)";
  } else {
    result.ratio = *result.tokens_per_s / single_tokens_per_s;
    result.bar = 3;
    result.yardstick = "tokens/s of one request";
  }
  return result;
}

BenchCase shared_decode(engine::Engine& engine, RandomPrompts& prompts, int batch, int64_t context, int repeats) {
  const Samples apart = decode_steps(engine, prompts, batch, context, false, repeats);
  const Samples shared = decode_steps(engine, prompts, batch, context, true, repeats);
  BenchCase result("engine.decode", fmt::format("{} x {} tokens, the same", batch, context));
  result.us = shared.median() * 1e6;
  result.spread = shared.spread();
  result.tokens_per_s = batch / shared.median();
  result.ratio = apart.median() / shared.median();
  result.yardstick = "time without a common beginning";
  return result;
}

BenchCase prefill(engine::Engine& engine, RandomPrompts& prompts, int64_t tokens, int repeats) {
  Samples samples;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto start = engine::Clock::now();
    Request& request = submit(engine, prompts.make(tokens), 1);
    while (engine.step()) {
    }
    samples.seconds.push_back(seconds_since(start));
    finish(engine, {&request});
  }
  const engine::ModelConfig& c = engine.model();
  const double flops = 2.0 * static_cast<double>(tokens) * static_cast<double>(c.parameters() - c.vocab * c.hidden);
  BenchCase result("engine.prefill", fmt::format("1 x {} tokens", tokens));
  result.us = samples.median() * 1e6;
  result.spread = samples.spread();
  result.tokens_per_s = static_cast<double>(tokens) / samples.median();
  result.tflops = flops / samples.median() / 1e12;
  return result;
}

BenchCase shared_prefix(engine::Engine& engine, RandomPrompts& prompts, int64_t tokens, int repeats) {
  Samples cold, warm;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const std::vector<int32_t> prefix = prompts.make(tokens);
    for (Samples* samples : {&cold, &warm}) {
      std::vector<int32_t> prompt = prefix;
      for (const int32_t token : prompts.make(16)) prompt.push_back(token);
      Request& request = submit(engine, prompt, 1);
      while (engine.step()) {
      }
      samples->seconds.push_back(request.seconds_to_first_token());
      finish(engine, {&request});
    }
  }
  BenchCase result("engine.prefix", fmt::format("second request, {} tokens shared", tokens));
  result.us = warm.median() * 1e6;
  result.spread = warm.spread();
  result.ratio = cold.median() / warm.median();
  result.bar = 4;
  result.yardstick = "time to first token of the first request";
  return result;
}

}  // namespace

double measure_read_bandwidth(engine::Pool& pool) {
  constexpr size_t kBytes = size_t{512} << 20;
  constexpr int64_t kParts = 64;
  const engine::Buffer memory(kBytes);
  float* data = memory.as<float>();
  const int64_t part = static_cast<int64_t>(kBytes / sizeof(float)) / kParts;
  pool.parallel_for(kParts, [&](int64_t i) { std::fill_n(data + i * part, part, 1.0f); });
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    std::vector<float> sums(kParts);
    const auto start = engine::Clock::now();
    pool.parallel_for(kParts, [&](int64_t i) { sums[static_cast<size_t>(i)] = engine::sum_floats(data + i * part, part); });
    const double seconds = seconds_since(start);
    if (sums[0] > 0) best = std::max(best, static_cast<double>(kBytes) / seconds);  // the sums are used
  }
  return best;
}

std::vector<BenchCase> bench_engine(engine::Engine& engine, int repeats) {
  RandomPrompts prompts(engine);
  std::vector<BenchCase> cases;
  cases.push_back(decode(engine, prompts, 1, 128, repeats, 0));
  const double single = *cases.back().tokens_per_s;
  cases.push_back(decode(engine, prompts, 8, 128, repeats, single));
  cases.push_back(decode(engine, prompts, 1, 1024, repeats, 0));
  cases.push_back(shared_decode(engine, prompts, 8, 1024, repeats));
  for (const int64_t tokens : {64, 512}) cases.push_back(prefill(engine, prompts, tokens, repeats));
  cases.push_back(shared_prefix(engine, prompts, 512, repeats));
  return cases;
}

}  // namespace fulmen::command
