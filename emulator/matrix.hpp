// The matrix units' arithmetic. Products are exact; the summands of a step (the accumulator among them) are aligned to the
// largest exponent and cut, toward zero, to `fraction_bits` below it; their sum is exact and is cut to fp32 at the end. Sources:
// arXiv 2511.10909 and 2512.07004; tests/kernels replays vectors recorded on real GPUs where there are any.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen::emulator {

struct MatrixModel {
  const char* name;
  int fraction_bits;  // kept below the largest exponent of a step
  int terms;          // products of 16-bit values that are added in one step
};

// One row per architecture; the emulator runs as Hopper unless told otherwise.
inline constexpr MatrixModel kMatrixModels[] = {
    {"ampere", 24, 8},
    {"hopper", 25, 16},
};
inline constexpr int kHopper = 1;
extern int matrix_model;  // index into kMatrixModels

// c[m, n] += a[m, k] b[n, k]^T, one instruction: k is cut into steps of the model's terms.
void multiply_add(const MatrixModel& model, DType type, int m, int n, int k, const uint16_t* a, const uint16_t* b, float* c);

}  // namespace fulmen::emulator
