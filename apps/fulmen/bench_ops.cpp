// The row-wise ops on the CPU against what the memory gives: a copy (norms, RoPE, activation, softmax) or a read
// (sampling) by plain loops on the same threads. Inputs rotate over sets that together are far beyond the cache. Case and
// probe run in turns, since a shared machine's memory has good and bad moments; best of each.
#include "bench.hpp"

#include "engine/buffer.hpp"
#include "engine/gemm.hpp"
#include "engine/input_error.hpp"

#include <fulmen/fulmen.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <random>

namespace fulmen::command {
namespace {

constexpr size_t kFarBeyondCache = size_t{256} << 20;

double seconds(const std::function<void()>& body) {
  const auto start = engine::Clock::now();
  body();
  return std::chrono::duration<double>(engine::Clock::now() - start).count();
}

class Bench {
 public:
  Bench(engine::Pool& pool, int repeats)
      : pool_(pool), repeats_(repeats), from_(kFarBeyondCache), to_(kFarBeyondCache), sums_(kParts) {
    FULMEN_INIT(fulmen_context_options, options);
    options.num_threads = pool.num_threads();
    options.parallel_for = &engine::Pool::fulmen_callback;
    options.parallel_user = &pool;
    if (fulmen_context_create(&options, &context_) != FULMEN_OK) throw engine::InputError(fulmen_last_error());
    each_part([&](size_t i) {
      std::memset(from_.as<char>() + i * kPart, 1, kPart);
      std::memset(to_.as<char>() + i * kPart, 1, kPart);
    });
  }
  ~Bench() { fulmen_context_destroy(context_); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  // body(set) works on one of num_sets inputs and moves `bytes`.
  void report(const std::string& op, const std::string& name, double bytes, bool reads_only, double bar, int num_sets,
              const std::function<fulmen_status(int)>& body) {
    double probe_time = 1e30, best = 1e30, worst = 0;
    for (int run = 0; run < repeats_; ++run) {
      probe_time = std::min(probe_time, reads_only ? read_time() : copy_time());
      const double time = seconds([&] {
                            for (int set = 0; set < num_sets; ++set) {
                              if (body(set) != FULMEN_OK) throw engine::InputError(fulmen_last_error());
                            }
                          }) / num_sets;
      best = std::min(best, time);
      worst = std::max(worst, time);
    }
    const double probe = (reads_only ? 1.0 : 2.0) * static_cast<double>(kFarBeyondCache) / probe_time;  // read and written
    BenchCase result(op, name);
    result.us = best * 1e6;
    result.spread = (worst - best) / best;
    result.gbps = bytes / best * 1e-9;
    result.ratio = bytes / best / probe;
    result.bar = bar;
    result.yardstick = reads_only ? "read bandwidth" : "copy bandwidth";
    cases_.push_back(std::move(result));
  }

  fulmen_context* context() const { return context_; }
  std::vector<BenchCase> take() { return std::move(cases_); }

 private:
  static constexpr size_t kPart = size_t{1} << 20, kParts = kFarBeyondCache / kPart;

  double copy_time() {
    return seconds([&] {
      each_part([&](size_t i) { std::memcpy(to_.as<char>() + i * kPart, from_.as<char>() + i * kPart, kPart); });
    });
  }
  double read_time() {
    return seconds([&] {
      each_part([&](size_t i) {
        sums_[i] = engine::sum_floats(from_.as<float>() + i * kPart / sizeof(float), kPart / sizeof(float));
      });
    });
  }
  template <class Body>
  void each_part(const Body& body) {
    pool_.parallel_for(kParts, [&](int64_t i) { body(static_cast<size_t>(i)); });
  }

  engine::Pool& pool_;
  int repeats_;
  fulmen_context* context_ = nullptr;
  engine::Buffer from_, to_;
  std::vector<float> sums_;
  std::vector<BenchCase> cases_;
};

fulmen_tensor tensor(void* data, int32_t dtype, std::vector<int64_t> shape) {
  fulmen_tensor t{};
  t.data = data;
  t.dtype = dtype;
  t.ndim = static_cast<int32_t>(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0; stride *= shape[i]) t.shape[i] = shape[i], t.stride[i] = stride;
  return t;
}

void fill_bf16(engine::Buffer& bytes) {
  std::mt19937_64 random(1);
  auto* p = bytes.as<uint16_t>();
  for (size_t i = 0; i < bytes.bytes() / 2; ++i) {
    const uint64_t r = random();
    p[i] = static_cast<uint16_t>(0x3e00 + (r & 0x1ff) + ((r >> 20 & 1) << 15));
  }
}

void fill_logits(engine::Buffer& bytes, float scale) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0.0f, scale);
  auto* p = bytes.as<float>();
  for (size_t i = 0; i < bytes.bytes() / 4; ++i) p[i] = normal(random);
}

void norms_and_activation(Bench& bench) {
  const int64_t tokens = 2048, hidden = 4096, size = tokens * hidden * 2;
  const int sets = 8;
  engine::Buffer x(static_cast<size_t>(sets * size)), y(static_cast<size_t>(sets * size)), weight(hidden * 2);
  fill_bf16(x), fill_bf16(y), fill_bf16(weight);
  const auto part = [&](engine::Buffer& b, int set) {
    return tensor(b.as<char>() + set * size, FULMEN_BF16, {tokens, hidden});
  };
  bench.report("rms_norm", "2048x4096 bf16", 2.0 * static_cast<double>(size), false, 0.8, sets, [&](int set) {
    FULMEN_INIT(fulmen_rms_norm_args, args);
    args.x = part(x, set), args.out = part(y, set), args.weight = tensor(weight.as<>(), FULMEN_BF16, {hidden});
    args.eps = 1e-6f;
    return fulmen_rms_norm(bench.context(), &args, nullptr);
  });
  bench.report("rms_norm", "2048x4096 bf16 add, in place", 4.0 * static_cast<double>(size), false, 0.8, sets,
               [&](int set) {
                 FULMEN_INIT(fulmen_rms_norm_args, args);
                 args.x = args.out = part(x, set), args.residual = part(y, set);
                 args.weight = tensor(weight.as<>(), FULMEN_BF16, {hidden}), args.eps = 1e-6f;
                 return fulmen_rms_norm(bench.context(), &args, nullptr);
               });
  bench.report("layer_norm", "2048x4096 bf16", 2.0 * static_cast<double>(size), false, 0.8, sets,
               [&](int set) {
                 FULMEN_INIT(fulmen_layer_norm_args, args);
                 args.x = part(x, set), args.out = part(y, set),
                 args.weight = tensor(weight.as<>(), FULMEN_BF16, {hidden});
                 args.eps = 1e-6f;
                 return fulmen_layer_norm(bench.context(), &args, nullptr);
               });
  for (int kind : {FULMEN_SILU, FULMEN_GELU, FULMEN_GELU_TANH}) {
    const char* const names[] = {"silu 1024x8192 bf16", "gelu 1024x8192 bf16", "gelu_tanh 1024x8192 bf16"};
    fill_bf16(x);
    bench.report("act_and_mul", names[kind], 1.5 * static_cast<double>(size), false, 0.8, sets, [&](int set) {
      FULMEN_INIT(fulmen_act_and_mul_args, args);
      args.x = tensor(x.as<char>() + set * size, FULMEN_BF16, {tokens / 2, 2 * hidden});
      args.out = tensor(y.as<char>() + set * size, FULMEN_BF16, {tokens / 2, hidden});
      args.activation = kind;
      return fulmen_act_and_mul(bench.context(), &args, nullptr);
    });
  }
  std::vector<int32_t> positions(static_cast<size_t>(tokens));
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int32_t>(i * 7);
  for (int interleaved : {0, 1}) {
    bench.report("rope", interleaved ? "2048 tokens 24/8x128 bf16 interleaved" : "2048 tokens 24/8x128 bf16",
                 2.0 * static_cast<double>(size), false, 0.8, sets, [&](int set) {
                   FULMEN_INIT(fulmen_rope_args, args);
                   args.q = tensor(x.as<char>() + set * size, FULMEN_BF16, {tokens, 24, 128});
                   args.k = tensor(x.as<char>() + set * size + 24 * 128 * 2, FULMEN_BF16, {tokens, 8, 128});
                   args.q.stride[0] = args.k.stride[0] = hidden;
                   args.positions = tensor(positions.data(), FULMEN_I32, {tokens});
                   args.params.interleaved = interleaved;
                   return fulmen_rope(bench.context(), &args, nullptr);
                 });
  }
}

void sampling(Bench& bench, const char* shape, float scale) {
  const int64_t rows = 32, vocab = 128256, size = rows * vocab * 4;
  const int sets = 8;
  engine::Buffer x(static_cast<size_t>(sets * size));
  fill_logits(x, scale);
  std::vector<int32_t> tokens(static_cast<size_t>(rows));
  std::vector<float> probs(static_cast<size_t>(rows * vocab)), values(static_cast<size_t>(rows * 50));
  std::vector<int32_t> indices(static_cast<size_t>(rows * 50));
  const std::string suffix = std::string(" 32x128256 f32 ") + shape;
  const auto bytes = static_cast<double>(size);
  const auto input = [&](int set) { return tensor(x.as<char>() + set * size, FULMEN_F32, {rows, vocab}); };

  bench.report("argmax", "greedy" + suffix, bytes, true, 0.5, sets, [&](int set) {
    FULMEN_INIT(fulmen_argmax_args, args);
    args.x = input(set), args.index = tensor(tokens.data(), FULMEN_I32, {rows});
    return fulmen_argmax(bench.context(), &args, nullptr);
  });
  struct Filter {
    const char* name;
    int top_k;
    float top_p, min_p;
    int order;
  };
  const Filter filters[] = {
      {"plain", 0, 1.0f, 0.0f, 0},
      {"min_p 0.05", 0, 1.0f, 0.05f, 0},
      {"top_p 0.9", 0, 0.9f, 0.0f, 0},
      {"top_p 0.99", 0, 0.99f, 0.0f, 0},
      {"top_k 50", 50, 1.0f, 0.0f, 0},
      {"top_k 1000", 1000, 1.0f, 0.0f, 0},
      {"top_k 50 top_p 0.9", 50, 0.9f, 0.0f, 0},
      {"top_k 50 top_p 0.9 joint", 50, 0.9f, 0.0f, 1},
  };
  for (const Filter& f : filters) {
    uint64_t offset = 0;
    bench.report("sample", f.name + suffix, bytes, true, 0.5, sets, [&](int set) {
      FULMEN_INIT(fulmen_sample_args, args);
      args.input = input(set), args.tokens = tensor(tokens.data(), FULMEN_I32, {rows});
      args.filter.temperature = 1.0f, args.filter.top_k = f.top_k, args.filter.top_p = f.top_p;
      args.filter.min_p = f.min_p, args.filter.order = f.order;
      args.seed = 1, args.offset = offset++;
      return fulmen_sample(bench.context(), &args, nullptr);
    });
  }
  bench.report("top_k", "50" + suffix, bytes, true, 0.5, sets, [&](int set) {
    FULMEN_INIT(fulmen_top_k_args, args);
    args.x = input(set), args.values = tensor(values.data(), FULMEN_F32, {rows, 50});
    args.indices = tensor(indices.data(), FULMEN_I32, {rows, 50});
    return fulmen_top_k(bench.context(), &args, nullptr);
  });
  bench.report("softmax", suffix.substr(1), 2.0 * bytes, false, 0.8, sets, [&](int set) {
    FULMEN_INIT(fulmen_softmax_args, args);
    args.logits = input(set), args.probs = tensor(probs.data(), FULMEN_F32, {rows, vocab});
    return fulmen_softmax(bench.context(), &args, nullptr);
  });
  bench.report("filter", "top_p 0.9" + suffix, 2.0 * bytes, false, 0.5, sets, [&](int set) {
    FULMEN_INIT(fulmen_filter_args, args);
    args.input = input(set), args.output = tensor(probs.data(), FULMEN_F32, {rows, vocab});
    args.filter.temperature = 1.0f, args.filter.top_p = 0.9f;
    return fulmen_filter(bench.context(), &args, nullptr);
  });
}

}  // namespace

std::vector<BenchCase> bench_ops(engine::Pool& pool, int repeats) {
  Bench bench(pool, repeats);
  norms_and_activation(bench);
  sampling(bench, "flat", 3.0f);
  sampling(bench, "peaked", 8.0f);
  return bench.take();
}

}  // namespace fulmen::command
