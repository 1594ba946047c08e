// From a row's finished state to o and lse.
#pragma once

#include <kernels/attention/attend_variants.cuh>

namespace fulmen {

template <AttendSm80Config kC>
FULMEN_FN void store_pair(void* row, int column, float a, float b) {
  if constexpr (kC.o_dtype == DType::f32) {
    float* p = static_cast<float*>(row) + column;
    p[0] = a;
    p[1] = b;
  } else {
    uint16_t* p = static_cast<uint16_t*>(row) + column;
    const uint32_t pair = pack<kC.o_dtype>(a, b);
    if constexpr (kC.general) {
      p[0] = static_cast<uint16_t>(pair);
      p[1] = static_cast<uint16_t>(pair >> 16);
    } else {
      *reinterpret_cast<uint32_t*>(p) = pair;
    }
  }
}

// In the canon a zero's sign says nothing: joining an empty state takes it away.
template <bool kCanonical>
FULMEN_FN float finished(float o) {
  if constexpr (kCanonical) return o + 0.0f;
  return o;
}

template <DType kType>
FULMEN_FN void* output_row(const AttendSm80Params& params, const AttendRow& row) {
  const int64_t offset = row.token * params.o_stride_row + row.head * params.o_stride_head;
  return static_cast<char*>(params.o) + offset * dtype_bytes(kType);
}
template <AttendSm80Config kC>
FULMEN_FN void store_lse(const AttendSm80Params& params, const AttendRow& row, float m, float l) {
  if constexpr (kC.variants.no_softmax) return;
  if (!params.lse) return;
  const float lse = l == 0.0f ? -infinity() : (m + ptx::lg2_approx(l)) * params.lse_unit;
  params.lse[row.token * params.lse_stride_row + row.head * params.lse_stride_head] = lse;
}

}  // namespace fulmen
