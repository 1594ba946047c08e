// ldmatrix (sm_75): 8x8 matrices of 16-bit elements from shared memory. Lane 8i + r names row r of matrix i (16 bytes,
// aligned); lane 4r + c receives elements 2c, 2c + 1 of row r of each matrix, transposed: of column r.
#pragma once

#include <kernels/prelude/device.hpp>

namespace fulmen::ptx {

#if defined(FULMEN_EMULATOR)
namespace emulated {

struct LdmatrixLane {
  uint32_t shared;
  uint32_t r[4];
};

template <int kMatrices, bool kTranspose> FULMEN_FN void ldmatrix(uint32_t (&r)[kMatrices], uint32_t shared) {
  LdmatrixLane mine{shared, {}};
  emulator::warp_instruction("ldmatrix", mine, [](LdmatrixLane* const* lanes) {
    for (int i = 0; i < kMatrices; ++i) {
      uint16_t matrix[8][8];
      for (int row = 0; row < 8; ++row) {
        emulator::lane_reads_shared(8 * i + row, lanes[8 * i + row]->shared, 16, matrix[row]);
      }
      for (int lane = 0; lane < 32; ++lane) {
        const int at = lane / 4, pair = 2 * (lane % 4);
        const uint32_t low = kTranspose ? matrix[pair][at] : matrix[at][pair];
        const uint32_t high = kTranspose ? matrix[pair + 1][at] : matrix[at][pair + 1];
        lanes[lane]->r[i] = low | high << 16;
      }
    }
  });
  for (int i = 0; i < kMatrices; ++i) r[i] = mine.r[i];
}

}  // namespace emulated
#endif

FULMEN_FN void ldmatrix_x4(uint32_t (&r)[4], uint32_t shared) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
#else
  emulated::ldmatrix<4, false>(r, shared);
#endif
}

FULMEN_FN void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t shared) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
#else
  emulated::ldmatrix<4, true>(r, shared);
#endif
}

FULMEN_FN void ldmatrix_x2(uint32_t (&r)[2], uint32_t shared) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared)
               : "memory");
#else
  emulated::ldmatrix<2, false>(r, shared);
#endif
}

FULMEN_FN void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t shared) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared)
               : "memory");
#else
  emulated::ldmatrix<2, true>(r, shared);
#endif
}

FULMEN_FN void ldmatrix_x1(uint32_t (&r)[1], uint32_t shared) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared)
               : "memory");
#else
  emulated::ldmatrix<1, false>(r, shared);
#endif
}

FULMEN_FN void ldmatrix_x1_trans(uint32_t (&r)[1], uint32_t shared) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared)
               : "memory");
#else
  emulated::ldmatrix<1, true>(r, shared);
#endif
}

}  // namespace fulmen::ptx
