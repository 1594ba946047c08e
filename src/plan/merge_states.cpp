#include "plan/merge_states.hpp"

#include <algorithm>
#include <initializer_list>

namespace fulmen {
namespace {

constexpr int kThreads = 128;  // 4 warps: one row of few heads still fills blocks on several multiprocessors
constexpr int kBlocksPerSm = 16;  // 2048 threads: all a multiprocessor holds

bool aligned(const MergeStatesParams& p) {
  const int64_t element = dtype_bytes(p.dtype);
  const auto fits = [&](const void* data, std::initializer_list<int64_t> strides) {
    bool ok = reinterpret_cast<uintptr_t>(data) % 16 == 0;
    for (const int64_t stride : strides) ok = ok && stride * element % 16 == 0;
    return ok;
  };
  return fits(p.first.o, {p.first.o_stride_row, p.first.o_stride_head, p.head_dim}) &&
         fits(p.second.o, {p.second.o_stride_row, p.second.o_stride_head, p.o_stride_part}) &&
         fits(p.o, {p.o_stride_row, p.o_stride_head});
}

}  // namespace

MergeStatesConfig choose_merge_states(const MergeStatesParams& params) {
  const int element = dtype_bytes(params.dtype);
  return {.dtype = params.dtype, .vector_bytes = aligned(params) ? 16 : element, .threads = kThreads};
}

int64_t merge_states_grid(const MergeStatesConfig& config, const MergeStatesParams& params,
                          const Target& target) {
  const int64_t warps = config.threads / 32, items = params.num_rows * params.num_heads;
  return std::min<int64_t>((items + warps - 1) / warps, static_cast<int64_t>(target.num_sms) * kBlocksPerSm);
}

Unit merge_states_unit(const MergeStatesConfig& config) {
  return make_unit<MergeStatesParams>("merge_states", {"kernels/merge/merge_states.cuh"}, "MergeStatesConfig",
                                      config, "MergeStatesParams", "merge_states<kConfig>(params);");
}

std::vector<Unit> merge_states_units(const Target&) {
  std::vector<Unit> units;
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    for (const int bytes : {16, dtype_bytes(dtype)}) {
      units.push_back(merge_states_unit({.dtype = dtype, .vector_bytes = bytes, .threads = kThreads}));
    }
  }
  return units;
}

}  // namespace fulmen
