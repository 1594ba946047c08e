#include "plan/rope.hpp"

#include <algorithm>

#include "plan/alignment.hpp"

namespace fulmen {
namespace {
constexpr int kThreads = 128;     // a multiple of the 4 to 16 units that a head has: a thread keeps its angles
}  // namespace

RopeConfig choose_rope(const RopeParams& p) {
  const int element = dtype_bytes(p.dtype);
  // Halves of a head start at 16 bytes too; interleaved pairs lie together.
  const int64_t part = p.interleaved ? p.rotary_dim : p.rotary_dim / 2;
  const bool wide = is_aligned(p.q, {p.q_stride_token, p.q_stride_head, part}, element, 16) &&
                    is_aligned(p.q_out, {p.q_out_stride_token, p.q_out_stride_head}, element, 16) &&
                    is_aligned(p.k, {p.k_stride_token, p.k_stride_head}, element, 16) &&
                    is_aligned(p.k_out, {p.k_out_stride_token, p.k_out_stride_head}, element, 16);
  return {.dtype = p.dtype, .interleaved = p.interleaved, .vector_bytes = wide ? 16 : element, .threads = kThreads};
}

// A block per token: the hardware evens them out, which a grid of as many blocks as fit does not.
int64_t rope_grid(const RopeParams& p) { return std::min<int64_t>(p.num_tokens, 0x7fffffff); }

Unit rope_unit(const RopeConfig& config) {
  return make_unit<RopeParams>("rope", {"kernels/rope/rope.cuh"}, "RopeConfig", config, "RopeParams", "rope<kConfig>(params);");
}

RopeConfig choose_rope_append(const RopeAppendParams& p) {
  const int element = dtype_bytes(p.rope.dtype);
  RopeConfig config = choose_rope(p.rope);
  const AppendKvParams& a = p.append;
  const auto wide = [&](const KvStorage& cache) {
    return is_aligned(cache.data, {cache.stride_page, cache.stride_token, cache.stride_head}, element, 16);
  };
  if (!wide(a.k_cache) || !wide(a.v_cache) || !is_aligned(a.v, {a.v_stride_token, a.v_stride_head, a.head_dim_vo}, element, 16)) {
    config.vector_bytes = element;
  }
  return config;
}

Unit rope_append_unit(const RopeConfig& config) {
  return make_unit<RopeAppendParams>("rope_append", {"kernels/rope/rope_append.cuh"}, "RopeConfig", config, "RopeAppendParams",
                                     "rope_append<kConfig>(params);");
}

namespace {

std::vector<Unit> units_of(Unit (*unit)(const RopeConfig&)) {
  std::vector<Unit> units;
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    for (const bool interleaved : {false, true}) {
      for (const int bytes : {16, dtype_bytes(dtype)}) {
        units.push_back(unit({.dtype = dtype, .interleaved = interleaved, .vector_bytes = bytes, .threads = kThreads}));
      }
    }
  }
  return units;
}

}  // namespace

std::vector<Unit> rope_units(const Target&) { return units_of(rope_unit); }
std::vector<Unit> rope_append_units(const Target&) { return units_of(rope_append_unit); }

}  // namespace fulmen
