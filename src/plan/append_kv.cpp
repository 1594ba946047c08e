#include "plan/append_kv.hpp"

#include <algorithm>

namespace fulmen {
namespace {

constexpr int kThreads = 128;      // 4 tokens a block: with 72 registers a thread, seven blocks and 28 tokens run on a multiprocessor
constexpr int kBlocksPerSm = 256;  // a token per warp, and turns only beyond 100,000 tokens: the hardware evens blocks out

bool aligned(const AppendKvParams& p, int64_t bytes) {
  const int64_t element = dtype_bytes(p.dtype);
  const auto fits = [&](const void* data, std::initializer_list<int64_t> strides) {
    bool ok = reinterpret_cast<uintptr_t>(data) % bytes == 0;
    for (const int64_t stride : strides) ok = ok && stride * element % bytes == 0;
    return ok;
  };
  return fits(p.k, {p.k_stride_token, p.k_stride_head, p.head_dim_qk}) &&
         fits(p.v, {p.v_stride_token, p.v_stride_head, p.head_dim_vo}) &&
         fits(p.k_cache.data, {p.k_cache.stride_page, p.k_cache.stride_token, p.k_cache.stride_head}) &&
         fits(p.v_cache.data, {p.v_cache.stride_page, p.v_cache.stride_token, p.v_cache.stride_head});
}

}  // namespace

AppendKvConfig choose_append_kv(const AppendKvParams& params) {
  const int element = dtype_bytes(params.dtype);
  return {.element_bytes = element, .vector_bytes = aligned(params, 16) ? 16 : element, .threads = kThreads};
}

int64_t append_kv_grid(const AppendKvConfig& config, int64_t num_tokens, const Target& target) {
  const int64_t warps = config.threads / 32;
  return std::min<int64_t>((num_tokens + warps - 1) / warps, static_cast<int64_t>(target.num_sms) * kBlocksPerSm);
}

Unit append_kv_unit(const AppendKvConfig& config) {
  return make_unit<AppendKvParams>("append_kv", {"kernels/append_kv/append_kv.cuh"}, "AppendKvConfig", config,
                                   "AppendKvParams", "append_kv<kConfig>(params);");
}

std::vector<Unit> append_kv_units(const Target&) {
  std::vector<Unit> units;
  for (const auto& [element, vector] : {std::pair{2, 16}, {2, 2}, {4, 16}, {4, 4}}) {
    units.push_back(append_kv_unit({.element_bytes = element, .vector_bytes = vector, .threads = kThreads}));
  }
  return units;
}

}  // namespace fulmen
