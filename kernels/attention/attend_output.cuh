// From a row's finished state to o and lse.
#pragma once

#include <kernels/attention/attend_items.cuh>
#include <kernels/ptx/special.cuh>
#include <kernels/tile/fragments.cuh>

namespace fulmen {

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;

template <DType kType>
FULMEN_FN void store_pair(void* row, int column, float a, float b) {
  if constexpr (kType == DType::f32) {
    float* p = static_cast<float*>(row) + column;
    p[0] = a;
    p[1] = b;
  } else {
    *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(row) + column) = pack<kType>(a, b);
  }
}

FULMEN_FN float inverse_sum(float l) { return l == 0.0f ? 0.0f : __fdividef(1.0f, l); }
FULMEN_FN float natural_lse(float m, float l) { return l == 0.0f ? -infinity() : (m + ptx::lg2_approx(l)) * kLn2; }

template <DType kType>
FULMEN_FN void* output_row(const AttendSm80Params& params, const AttendRow& row) {
  const int64_t offset = row.token * params.o_stride_row + row.head * params.o_stride_head;
  return static_cast<char*>(params.o) + offset * dtype_bytes(kType);
}
FULMEN_FN void store_lse(const AttendSm80Params& params, const AttendRow& row, float m, float l) {
  if (params.lse) params.lse[row.token * params.lse_stride_row + row.head * params.lse_stride_head] = natural_lse(m, l);
}

}  // namespace fulmen
