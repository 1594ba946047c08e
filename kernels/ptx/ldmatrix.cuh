// ldmatrix (sm_75): four 8x8 matrices of 16-bit elements from shared memory. Lane 8i + r names row r of matrix i
// (16 bytes, aligned); lane 4r + c receives elements 2c, 2c + 1 of row r of each matrix, transposed: of column r.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen::ptx {

FULMEN_FN void ldmatrix_x4(uint32_t (&r)[4], uint32_t shared) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
#endif
}

FULMEN_FN void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t shared) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
#endif
}

}  // namespace fulmen::ptx
