#include "plan/act_and_mul.hpp"

#include <algorithm>

#include "plan/alignment.hpp"

namespace fulmen {
namespace {
constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 8;  // 2048 threads: all a multiprocessor holds
}  // namespace

ActAndMulConfig choose_act_and_mul(const ActAndMulParams& p) {
  const int element = dtype_bytes(p.dtype);
  const bool wide = is_aligned(p.x, {p.x_stride, p.width}, element, 16) && is_aligned(p.out, {p.out_stride}, element, 16);
  return {.dtype = p.dtype, .activation = p.activation, .vector_bytes = wide ? 16 : element, .threads = kThreads};
}

int64_t act_and_mul_grid(const ActAndMulConfig& config, const ActAndMulParams& p, const Target& target) {
  const int64_t span = static_cast<int64_t>(kActSpan) * config.threads * config.vector();
  const int64_t items = p.num_tokens * ((p.width + span - 1) / span);
  return std::min<int64_t>(items, static_cast<int64_t>(target.num_sms) * kBlocksPerSm);
}

Unit act_and_mul_unit(const ActAndMulConfig& config) {
  return make_unit<ActAndMulParams>("act_and_mul", {"kernels/activation/act_and_mul.cuh"}, "ActAndMulConfig", config,
                                    "ActAndMulParams", "act_and_mul<kConfig>(params);");
}

std::vector<Unit> act_and_mul_units(const Target&) {
  std::vector<Unit> units;
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh}) {
      for (const int bytes : {16, dtype_bytes(dtype)}) {
        units.push_back(act_and_mul_unit({.dtype = dtype, .activation = activation, .vector_bytes = bytes, .threads = kThreads}));
      }
    }
  }
  return units;
}

}  // namespace fulmen
