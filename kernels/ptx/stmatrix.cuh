// stmatrix (sm_90): ldmatrix the other way. Lane 8i + r names where row r of matrix i (16 bytes, aligned) goes; lane 4r + c gives
// elements 2c, 2c + 1 of row r of each 8x8 matrix, transposed: of column r.
#pragma once

#include <kernels/prelude/device.hpp>

namespace fulmen::ptx {

#if defined(FULMEN_EMULATOR)
namespace emulated {

struct StmatrixLane {
  uint32_t shared;
  uint32_t r[4];
};

template <bool kTranspose> FULMEN_FN void stmatrix_x4(uint32_t shared, const uint32_t (&r)[4]) {
  StmatrixLane mine{shared, {r[0], r[1], r[2], r[3]}};
  emulator::warp_instruction("stmatrix", mine, [](StmatrixLane* const* lanes) {
    for (int i = 0; i < 4; ++i) {
      uint16_t matrix[8][8];
      for (int lane = 0; lane < 32; ++lane) {
        const int at = lane / 4, pair = 2 * (lane % 4);
        const uint32_t both = lanes[lane]->r[i];
        (kTranspose ? matrix[pair][at] : matrix[at][pair]) = static_cast<uint16_t>(both);
        (kTranspose ? matrix[pair + 1][at] : matrix[at][pair + 1]) = static_cast<uint16_t>(both >> 16);
      }
      for (int row = 0; row < 8; ++row) emulator::lane_writes_shared(8 * i + row, lanes[8 * i + row]->shared, 16, matrix[row]);
    }
  });
}

}  // namespace emulated
#endif

FULMEN_FN void stmatrix_x4(uint32_t shared, const uint32_t (&r)[4]) {
#if defined(FULMEN_DEVICE_CODE)
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#else
  __trap();
#endif
#else
  emulated::stmatrix_x4<false>(shared, r);
#endif
}

FULMEN_FN void stmatrix_x4_trans(uint32_t shared, const uint32_t (&r)[4]) {
#if defined(FULMEN_DEVICE_CODE)
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(r[0]), "r"(r[1]), "r"(r[2]),
               "r"(r[3])
               : "memory");
#else
  __trap();
#endif
#else
  emulated::stmatrix_x4<true>(shared, r);
#endif
}

}  // namespace fulmen::ptx
