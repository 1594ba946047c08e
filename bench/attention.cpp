// Attention on the CPU against what the machine gives: a line of JSON per case,
//   {"op", "case", "us", "gbps" | "gflops", "yardstick", "ratio", "bar"}
// decode    bytes of K and V per second, to a plain read loop on as many threads
// prefill   FLOP per second, causal counted half, to oneDNN's 2048^3 product in the same dtype
// variants  time, to plain causal decode
// Case and yardstick run in turns, since a shared machine has good and bad moments; best of each.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if defined(FULMEN_BENCH_DNNL)
#include <dnnl.hpp>
#endif

#include "core/pool.hpp"
#include "fulmen/fulmen.h"

namespace {

double seconds(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// In huge pages where the system has them, as an engine keeps its cache.
struct Memory {
  explicit Memory(size_t size) : data(std::aligned_alloc(kPage, (size + kPage - 1) / kPage * kPage)), bytes(size) {
    madvise(data, (size + kPage - 1) / kPage * kPage, MADV_HUGEPAGE);
    std::memset(data, 0, size);
  }
  static constexpr size_t kPage = size_t{2} << 20;
  ~Memory() { std::free(data); }
  Memory(const Memory&) = delete;
  void* data;
  size_t bytes;
};

void fill_normal(Memory& m, int32_t dtype) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(1 << 16);
  for (float& x : values) x = normal(random);
  if (dtype == FULMEN_F32) {
    for (size_t i = 0; i < m.bytes / 4; ++i) static_cast<float*>(m.data)[i] = values[(i * 31) & 0xffff];
    return;
  }
  for (size_t i = 0; i < m.bytes / 2; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[(i * 31) & 0xffff], 4);
    const uint32_t exponent = bits >> 23 & 255;
    static_cast<uint16_t*>(m.data)[i] = static_cast<uint16_t>(
        dtype == FULMEN_BF16 ? bits >> 16
                             : (bits >> 16 & 0x8000) | (exponent < 113 ? 0 : (exponent - 112) << 10 | (bits >> 13 & 1023)));
  }
}

fulmen_tensor tensor(void* data, int32_t dtype, std::initializer_list<int64_t> shape) {
  fulmen_tensor t{};
  t.data = data, t.dtype = dtype, t.ndim = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), t.shape);
  int64_t stride = 1;
  for (int i = t.ndim; i-- > 0; stride *= t.shape[i]) t.stride[i] = stride;
  return t;
}

void check(fulmen_status status) {
  if (status == FULMEN_OK) return;
  std::fprintf(stderr, "bench_attention: %s\n", fulmen_last_error());
  std::exit(1);
}

struct Shape {
  std::string name;
  int32_t dtype;
  std::vector<int32_t> kv_len;
  int32_t qo_len, qo_heads, kv_heads, head_dim;
  bool causal = true;
  uint32_t features = 0;
};

const char* dtype_text(int32_t dtype) { return dtype == FULMEN_F32 ? "f32" : dtype == FULMEN_F16 ? "f16" : "bf16"; }
int64_t element_bytes(int32_t dtype) { return dtype == FULMEN_F32 ? 4 : 2; }

// One call, ready to be run again and again.
class Call {
 public:
  Call(fulmen_context* context, const Shape& s)
      : pages_(count_pages(s)),
        k_(kv_bytes(s)), v_(kv_bytes(s)), q_(q_bytes(s)), o_(q_bytes(s)),
        slopes_(static_cast<size_t>(s.qo_heads), 0.01f) {
    const int64_t n = static_cast<int64_t>(s.kv_len.size()), rows = n * s.qo_len;
    fill_normal(k_, s.dtype), fill_normal(v_, s.dtype), fill_normal(q_, s.dtype);
    FULMEN_INIT(fulmen_attention_spec, spec);
    spec.q_dtype = spec.kv_dtype = spec.o_dtype = s.dtype;
    spec.head_dim_qk = spec.head_dim_vo = s.head_dim;
    spec.features = s.features;
    FULMEN_INIT(fulmen_attention_limits, limits);
    limits.max_requests = n, limits.max_rows = rows, limits.num_groups = 1;
    limits.max_kv_len = *std::max_element(s.kv_len.begin(), s.kv_len.end());
    limits.groups[0] = {sizeof(fulmen_attention_group), s.qo_heads, s.kv_heads, s.causal ? 1 : 0, -1};
    check(fulmen_attention_create(context, &spec, &limits, &attention_));
    FULMEN_INIT(fulmen_attention_sizes, sizes);
    check(fulmen_attention_sizes_of(attention_, &sizes));
    plan_ = std::make_unique<Memory>(sizes.plan_bytes), scratch_ = std::make_unique<Memory>(sizes.scratch_bytes);

    // A random permutation of the pool: an ordered table would flatter prefetching.
    std::vector<int32_t> ids(static_cast<size_t>(pages_));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(2));
    table_ = ids;
    indptr_.push_back(0), qo_indptr_.push_back(0);
    for (int32_t length : s.kv_len) {
      indptr_.push_back(indptr_.back() + (length + kPage - 1) / kPage);
      qo_indptr_.push_back(qo_indptr_.back() + s.qo_len);
    }
    kv_len_ = s.kv_len;
    FULMEN_INIT(fulmen_attention_lengths, lengths);
    lengths.levels[0].struct_size = sizeof lengths.levels[0];
    lengths.levels[0].qo_indptr = tensor(qo_indptr_.data(), FULMEN_I32, {n + 1});
    lengths.levels[0].kv_len = tensor(kv_len_.data(), FULMEN_I32, {n});
    check(fulmen_attention_plan(attention_, &lengths, plan_->data, nullptr));
    tensors_.struct_size = sizeof tensors_;
    tensors_.page_size = kPage;
    tensors_.q = tensor(q_.data, s.dtype, {rows, s.qo_heads, s.head_dim});
    tensors_.o = tensor(o_.data, s.dtype, {rows, s.qo_heads, s.head_dim});
    tensors_.k = tensor(k_.data, s.dtype, {pages_, kPage, s.kv_heads, s.head_dim});
    tensors_.v = tensor(v_.data, s.dtype, {pages_, kPage, s.kv_heads, s.head_dim});
    tensors_.kv[0].struct_size = sizeof tensors_.kv[0];
    tensors_.kv[0].table = tensor(table_.data(), FULMEN_I32, {pages_});
    tensors_.kv[0].indptr = tensor(indptr_.data(), FULMEN_I32, {n + 1});
    if (s.features & FULMEN_ATTENTION_SOFT_CAP) tensors_.logits_soft_cap = 30.0f;
    if (s.features & FULMEN_ATTENTION_ALIBI) tensors_.alibi_slopes = tensor(slopes_.data(), FULMEN_F32, {s.qo_heads});
    if (s.features & FULMEN_ATTENTION_SINKS) tensors_.sinks = tensor(slopes_.data(), FULMEN_F32, {s.qo_heads});
    if (s.features & FULMEN_ATTENTION_CUSTOM_MASK) {
      mask_.assign(static_cast<size_t>(n) * ((limits.max_kv_len * s.qo_len + 7) / 8), 0xff);
      for (int64_t r = 0; r <= n; ++r) mask_indptr_.push_back(r * ((limits.max_kv_len * s.qo_len + 7) / 8));
      tensors_.mask = tensor(mask_.data(), FULMEN_U8, {static_cast<int64_t>(mask_.size())});
      tensors_.mask_indptr = tensor(mask_indptr_.data(), FULMEN_I64, {n + 1});
    }
  }
  ~Call() { fulmen_attention_destroy(attention_); }
  void run() { check(fulmen_attention_run(attention_, &tensors_, plan_->data, scratch_->data, nullptr)); }

 private:
  static constexpr int64_t kPage = 16;
  static int64_t count_pages(const Shape& s) {
    int64_t n = 0;
    for (int32_t length : s.kv_len) n += (length + kPage - 1) / kPage;
    return n;
  }
  size_t kv_bytes(const Shape& s) const {
    return static_cast<size_t>(pages_ * kPage * s.kv_heads * s.head_dim * element_bytes(s.dtype));
  }
  static size_t q_bytes(const Shape& s) {
    return s.kv_len.size() * static_cast<size_t>(s.qo_len * s.qo_heads * s.head_dim * element_bytes(s.dtype));
  }

  int64_t pages_;
  Memory k_, v_, q_, o_;
  std::unique_ptr<Memory> plan_, scratch_;
  std::vector<float> slopes_;
  std::vector<uint8_t> mask_;
  std::vector<int64_t> mask_indptr_;
  std::vector<int32_t> table_, indptr_, qo_indptr_, kv_len_;
  fulmen_attention* attention_ = nullptr;
  fulmen_attention_tensors tensors_{};
};

class Bench {
 public:
  explicit Bench(int threads) : pool_(threads), probe_(size_t{256} << 20) {
    FULMEN_INIT(fulmen_context_options, options);
    options.num_threads = threads;
    check(fulmen_context_create(&options, &context_));
  }
  ~Bench() { fulmen_context_destroy(context_); }

  void decode(const Shape& s, double bar) {
    double bytes = 0.0;
    for (int32_t length : s.kv_len) bytes += 2.0 * length * s.kv_heads * s.head_dim * element_bytes(s.dtype);
    Call call(context_, s);
    double best = 1e30, probe = 1e30;
    for (int i = 0; i < 15; ++i) {
      probe = std::min(probe, seconds([&] { read(); }));
      best = std::min(best, seconds([&] { call.run(); }));
    }
    const double rate = bytes / best, read_rate = static_cast<double>(probe_.bytes) / probe;
    std::printf("{\"op\": \"attention.decode\", \"case\": \"%s %s\", \"us\": %.1f, \"gbps\": %.2f, \"yardstick\": %.2f, "
                "\"ratio\": %.3f, \"bar\": %.2f}\n",
                dtype_text(s.dtype), s.name.c_str(), best * 1e6, rate / 1e9, read_rate / 1e9, rate / read_rate, bar);
    std::fflush(stdout);
  }

  void variant(Shape s, const char* name, uint32_t features) {
    Call plain(context_, s);
    s.features = features;
    Call call(context_, s);
    double best = 1e30, best_plain = 1e30;
    for (int i = 0; i < 15; ++i) {
      best_plain = std::min(best_plain, seconds([&] { plain.run(); }));
      best = std::min(best, seconds([&] { call.run(); }));
    }
    std::printf("{\"op\": \"attention.decode\", \"case\": \"%s %s\", \"us\": %.1f, \"yardstick\": %.1f, \"ratio\": %.3f, "
                "\"bar\": 1.3, \"at_most\": true}\n", name, s.name.c_str(), best * 1e6, best_plain * 1e6, best / best_plain);
    std::fflush(stdout);
  }

  void prefill(const Shape& s, double bar) {
    double scores = 0.0;
    for (int32_t length : s.kv_len) {
      const double full = static_cast<double>(s.qo_len) * length;
      scores += s.causal ? full - 0.5 * s.qo_len * (s.qo_len - 1.0) : full;
    }
    const double flop = 4.0 * scores * s.qo_heads * s.head_dim;
    Call call(context_, s);
    double best = 1e30, gemm = 0.0;
    for (int i = 0; i < 7; ++i) {
      gemm = std::max(gemm, gemm_rate(s.dtype));
      best = std::min(best, seconds([&] { call.run(); }));
    }
    std::printf("{\"op\": \"attention.prefill\", \"case\": \"%s %s\", \"us\": %.1f, \"gflops\": %.1f, \"yardstick\": %.1f, "
                "\"ratio\": %.3f, \"bar\": %.2f}\n",
                dtype_text(s.dtype), s.name.c_str(), best * 1e6, flop / best / 1e9, gemm / 1e9,
                gemm > 0 ? flop / best / gemm : 0.0, bar);
    std::fflush(stdout);
  }

 private:
  void read() {
    const int64_t parts = pool_.num_threads();
    pool_.parallel_for(parts, [&](int64_t part) {
      typedef uint64_t Vector __attribute__((vector_size(64)));
      const size_t count = probe_.bytes / sizeof(Vector) / static_cast<size_t>(parts);
      const auto* p = static_cast<const Vector*>(probe_.data) + static_cast<size_t>(part) * count;
      Vector sum[4] = {};
      for (size_t i = 0; i + 4 <= count; i += 4) {
        for (size_t j = 0; j < 4; ++j) sum[j] += p[i + j];
      }
      sink_ = (sum[0] + sum[1] + sum[2] + sum[3])[0];
    });
  }

  double gemm_rate([[maybe_unused]] int32_t dtype) {
#if defined(FULMEN_BENCH_DNNL)
    if (dtype == FULMEN_F16) return 0.0;
    using namespace dnnl;
    constexpr int64_t n = 2048;
    static engine cpu(engine::kind::cpu, 0);
    static stream queue(cpu);
    const auto type = dtype == FULMEN_F32 ? memory::data_type::f32 : memory::data_type::bf16;
    const memory::desc in({n, n}, type, memory::format_tag::ab), out({n, n}, memory::data_type::f32, memory::format_tag::ab);
    Memory a(static_cast<size_t>(n * n * element_bytes(dtype))), b(a.bytes), c(n * n * 4);
    fill_normal(a, dtype), fill_normal(b, dtype);
    memory ma(in, cpu, a.data), mb(in, cpu, b.data), mc(out, cpu, c.data);
    matmul product(matmul::primitive_desc(matmul::desc(in, in, out), cpu));
    double best = 1e30;
    for (int i = 0; i < 3; ++i) {
      best = std::min(best, seconds([&] {
        product.execute(queue, {{DNNL_ARG_SRC, ma}, {DNNL_ARG_WEIGHTS, mb}, {DNNL_ARG_DST, mc}});
        queue.wait();
      }));
    }
    return 2.0 * n * n * n / best;
#else
    return 0.0;
#endif
  }

  fulmen::Pool pool_;
  Memory probe_;
  fulmen_context* context_ = nullptr;
  volatile uint64_t sink_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : static_cast<int>(std::thread::hardware_concurrency());
  Bench bench(threads);
  std::vector<int32_t> uneven = {29184};
  for (int i = 0; i < 7; ++i) uneven.push_back(512);
  for (int32_t dtype : {FULMEN_BF16, FULMEN_F16, FULMEN_F32}) {
    const double bar = dtype == FULMEN_BF16 ? 0.85 : 0.0;
    bench.decode({"8x4096 32/8 d128", dtype, std::vector<int32_t>(8, 4096), 1, 32, 8, 128}, bar);
    bench.decode({"1x32768 32/8 d128", dtype, {32768}, 1, 32, 8, 128}, bar);
    bench.decode({"uneven 32768 32/8 d128", dtype, uneven, 1, 32, 8, 128}, bar);
  }
  const Shape decode{"8x4096 32/8 d128", FULMEN_BF16, std::vector<int32_t>(8, 4096), 1, 32, 8, 128};
  bench.variant(decode, "soft cap", FULMEN_ATTENTION_SOFT_CAP);
  bench.variant(decode, "ALiBi", FULMEN_ATTENTION_ALIBI);
  bench.variant(decode, "sinks", FULMEN_ATTENTION_SINKS);
  bench.variant(decode, "custom mask", FULMEN_ATTENTION_CUSTOM_MASK);
  bench.prefill({"1x2048x16 d128 causal", FULMEN_F32, {2048}, 2048, 16, 16, 128}, 0.6);
  bench.prefill({"1x2048x16 d128 full", FULMEN_F32, {2048}, 2048, 16, 16, 128, false}, 0.6);
  bench.prefill({"1x2048x16 d128 causal", FULMEN_BF16, {2048}, 2048, 16, 16, 128}, 0.5);
  bench.prefill({"1x2048x16 d128 full", FULMEN_BF16, {2048}, 2048, 16, 16, 128, false}, 0.5);
}
