#include "random_run.hpp"

#include "random_model.hpp"

#include "engine/cpu_executor.hpp"
#include "engine/cuda_executor.hpp"
#include "engine/kernel_specs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>
#include <optional>
#include <thread>

namespace fulmen::engine_check {
namespace {

using namespace fulmen::engine;
using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr int32_t kPageSize = 16, kChunk = 256;
constexpr float kTie = 1e-2f;
constexpr int kWarmSteps = 8, kTimedSteps = 40;  // the warm ones include the profiled step

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// One new row for each of `batch` requests that have `length` keys with it; request r's pages lie one after another.
class DecodeStep {
 public:
  DecodeStep(int64_t batch, int64_t length, int64_t max_length) : pages_per_request_((max_length + kPageSize - 1) / kPageSize) {
    qo_indptr.push_back(0), page_indptr.push_back(0);
    for (int64_t r = 0; r < batch; ++r) add(r, length, 1, std::vector<int32_t>{static_cast<int32_t>(17 * r + length)});
  }
  /// A prompt's rows, of request 0.
  DecodeStep(const std::vector<int32_t>& prompt, int64_t length, int64_t max_length)
      : pages_per_request_((max_length + kPageSize - 1) / kPageSize) {
    qo_indptr.push_back(0), page_indptr.push_back(0);
    add(0, length, static_cast<int64_t>(prompt.size()), prompt);
  }

  Step view() const { return {tokens, positions, slots, qo_indptr, kv_len, page_indptr, pages, sample_rows, sampling, {}, {}, {}, {}}; }

 private:
  void add(int64_t request, int64_t length, int64_t rows, const std::vector<int32_t>& words) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t position = length - rows + i;
      tokens.push_back(words[static_cast<size_t>(i)]);
      positions.push_back(static_cast<int32_t>(position));
      slots.push_back(request * pages_per_request_ * kPageSize + position);
    }
    qo_indptr.push_back(static_cast<int32_t>(tokens.size()));
    kv_len.push_back(static_cast<int32_t>(length));
    for (int64_t p = 0; p < (length + kPageSize - 1) / kPageSize; ++p)
      pages.push_back(static_cast<int32_t>(request * pages_per_request_ + p));
    page_indptr.push_back(static_cast<int32_t>(pages.size()));
    sample_rows.push_back(static_cast<int32_t>(tokens.size()) - 1);
    sampling.push_back({});
  }
  int64_t pages_per_request_;
  std::vector<int32_t> tokens, positions, qo_indptr, kv_len, page_indptr, pages, sample_rows;
  std::vector<int64_t> slots;
  std::vector<Sampling> sampling;
};

ExecutorLimits limits_of(const RandomRun& options, int64_t batch, int64_t context) {
  ExecutorLimits limits = executor_limits(static_cast<int32_t>(batch), kChunk, kPageSize, context,
                                          options.kv_type == "bf16" ? FULMEN_BF16 : FULMEN_F16);
  limits.num_pages = batch * ((context + kPageSize - 1) / kPageSize);
  return limits;
}

Json time_steps(CudaExecutor& gpu, const RandomRun& options, int64_t batch, int64_t max_context) {
  std::vector<int32_t> next(static_cast<size_t>(batch));
  std::vector<double> seconds;
  for (int i = 0; i < kWarmSteps + kTimedSteps; ++i) {
    const DecodeStep step(batch, options.context + i, max_context);
    const auto start = Clock::now();
    gpu.run(step.view(), next);
    if (i >= kWarmSteps) seconds.push_back(seconds_since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const int64_t median_context = options.context + kWarmSteps + kTimedSteps / 2;
  const auto bytes = static_cast<double>(gpu.weight_bytes() + batch * median_context * gpu.kv_bytes_per_token());
  Json shares = Json::object();
  const PartSeconds parts = gpu.seconds();
  const double all = std::accumulate(parts.begin(), parts.end(), 0.0);
  for (size_t p = 0; p < kNumParts; ++p)
    if (parts[p] > 0) shares[std::string(kPartNames[p])] = std::round(1000 * parts[p] / all) / 1000;
  return {{"op", "engine.decode"},
          {"case", fmt::format("{} {} x {} {}{}", options.shape, batch, options.context, options.kv_type,
                               options.invariant ? " invariant" : "")},
          {"us", median * 1e6},
          {"spread", (seconds[seconds.size() * 9 / 10] - seconds[seconds.size() / 10]) / median},
          {"tokens_per_s", static_cast<double>(batch) / median},
          {"gbps", bytes / median / 1e9},
          {"step", gpu.step_summary()},
          {"shares", shares},
          {"device", gpu.device_summary()}};
}

/// Both back ends get the CPU's words, so that each step is compared on its own.
Json compare_words(const RandomRun& options, const ModelConfig& config, const GgufFile& file, Pool& pool, CudaExecutor& gpu,
                   int64_t max_context) {
  CpuExecutor cpu(config, file, pool, limits_of(options, 1, max_context));
  std::vector<int32_t> words(16);
  for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(config.vocab));
  int64_t same = 0, ties = 0, wrong = 0, length = static_cast<int64_t>(words.size());
  double largest = 0;
  for (int64_t i = 0; i < options.tokens; ++i) {
    const DecodeStep step(words, length, max_context);
    int32_t expected = 0, found = 0;
    cpu.run(step.view(), {&expected, 1});
    gpu.run(step.view(), {&found, 1});
    const auto mine = gpu.logits(), theirs = cpu.logits();
    float first = -1e30f, second = -1e30f;
    for (size_t v = 0; v < theirs.size(); ++v) {
      largest = std::max(largest, std::abs(static_cast<double>(theirs[v]) - mine[v]));
      if (theirs[v] > first) second = first, first = theirs[v];
      else second = std::max(second, theirs[v]);
    }
    ++(found == expected ? same : first - second > kTie ? wrong : ties);
    words = {expected};
    ++length;
  }
  return {{"tokens", options.tokens}, {"same", same}, {"ties", ties}, {"wrong", wrong}, {"largest_logit_error", largest}};
}

}  // namespace

Json run_random(const RandomRun& options) {
  Pool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  Json result = {{"shape", options.shape}, {"cases", Json::array()}};
  auto start = Clock::now();
  const GgufFile file = random_model(named_shape(options.shape), pool);
  const ModelConfig config = read_model_config(file);
  result["make_s"] = seconds_since(start);
  const int64_t max_context = options.context + kWarmSteps + kTimedSteps + 1;
  for (const int64_t batch : options.batches) {
    start = Clock::now();
    CudaExecutor gpu(config, file, pool, limits_of(options, batch, max_context), options.invariant);
    result["device"] = gpu.description();
    const double load = seconds_since(start);
    result["cases"].push_back(time_steps(gpu, options, batch, max_context));
    result["cases"].back()["load_s"] = load;
    fmt::print(stderr, "{}\n", result["cases"].back().dump());
    if (batch == options.batches.front() && options.tokens > 0) {
      result["words"] = compare_words(options, config, file, pool, gpu, max_context);
      fmt::print(stderr, "{}\n", result["words"].dump());
    }
  }
  result["passed"] = !result.contains("words") || result["words"]["wrong"] == 0;
  return result;
}

}  // namespace fulmen::engine_check
