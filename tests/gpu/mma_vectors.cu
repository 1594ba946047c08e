// Records what mma.sync m16n8k16 gives on this GPU: one warp per instruction. full: the first instructions' results; digests:
// one sum per chunk of kPerChunk instructions.
#include <kernels/ptx/mma.cuh>
#include <tests/gpu/mma_vectors.hpp>

using namespace fulmen;

template <DType kType>
__device__ void record(unsigned long long seed, unsigned long long count, unsigned long long full_count, float* full,
                       unsigned long long* digests) {
  const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const unsigned long long warps = static_cast<unsigned long long>(gridDim.x) * (blockDim.x / 32);
  for (unsigned long long i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; i < count; i += warps) {
    uint32_t a[4], b[2];
    float d[4];
    for (int r = 0; r < 4; ++r) {
      const int row = g + 8 * (r % 2), column = 2 * t + 8 * (r / 2);
      a[r] = vectors::a_value(kType, seed, i, row, column) | static_cast<uint32_t>(vectors::a_value(kType, seed, i, row, column + 1)) << 16;
      d[r] = vectors::c_value(seed, i, g + 8 * (r / 2), 2 * t + r % 2);
    }
    for (int r = 0; r < 2; ++r) {
      const int row = 2 * t + 8 * r;
      b[r] = vectors::b_value(kType, seed, i, row, g) | static_cast<uint32_t>(vectors::b_value(kType, seed, i, row + 1, g)) << 16;
    }
    if constexpr (kType == DType::bf16) {
      ptx::mma_m16n8k16_bf16(d, a, b[0], b[1]);
    } else {
      ptx::mma_m16n8k16_f16(d, a, b[0], b[1]);
    }
    unsigned long long sum = 0;
    for (int r = 0; r < 4; ++r) {
      const int row = g + 8 * (r / 2), column = 2 * t + r % 2;
      sum += vectors::digest_term(i, row, column, d[r]);
      if (i < full_count) full[i * 128 + row * 8 + column] = d[r];
    }
    atomicAdd(digests + i / vectors::kPerChunk, sum);
  }
}

extern "C" __global__ void record_bf16(unsigned long long seed, unsigned long long count, unsigned long long full_count, float* full,
                                       unsigned long long* digests) {
  record<DType::bf16>(seed, count, full_count, full, digests);
}
extern "C" __global__ void record_f16(unsigned long long seed, unsigned long long count, unsigned long long full_count, float* full,
                                      unsigned long long* digests) {
  record<DType::f16>(seed, count, full_count, full, digests);
}
