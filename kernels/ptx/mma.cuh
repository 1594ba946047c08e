// mma.sync m16n8k16 (sm_80): d[16, 8] += a[16, 16] b[16, 8], fp32 accumulators.
// Lane 4g + t holds  a: {row g, cols 2t..}, {row g + 8, cols 2t..}, {row g, cols 2t + 8..}, {row g + 8, cols 2t + 8..}
//                    b: {rows 2t, 2t + 1 of column g}, {rows 2t + 8, 2t + 9 of column g}
//                    d: {row g, cols 2t, 2t + 1}, {row g + 8, cols 2t, 2t + 1}
// The order and width of the additions are the matrix unit's own: emulator/matrix.hpp.
#pragma once

#include <kernels/prelude/device.hpp>

namespace fulmen::ptx {

#if defined(FULMEN_EMULATOR)
namespace emulated {

struct MmaLane {
  uint32_t a[4], b[2];
  float d[4];
};

template <DType kType>
FULMEN_FN void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaLane mine{{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
  emulator::warp_instruction("mma.sync.m16n8k16", mine, [](MmaLane* const* lanes) {
    uint16_t a_rows[16][16], b_columns[8][16];
    float c[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i % 2), column = 2 * t + 8 * (i / 2);
        a_rows[row][column] = static_cast<uint16_t>(lanes[lane]->a[i]);
        a_rows[row][column + 1] = static_cast<uint16_t>(lanes[lane]->a[i] >> 16);
        c[g + 8 * (i / 2)][2 * t + i % 2] = lanes[lane]->d[i];
      }
      for (int i = 0; i < 2; ++i) {
        b_columns[g][2 * t + 8 * i] = static_cast<uint16_t>(lanes[lane]->b[i]);
        b_columns[g][2 * t + 8 * i + 1] = static_cast<uint16_t>(lanes[lane]->b[i] >> 16);
      }
    }
    emulator::matrix_multiply_add(kType, 16, 8, 16, &a_rows[0][0], &b_columns[0][0], &c[0][0]);
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) lanes[lane]->d[i] = c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
    }
  });
  for (int i = 0; i < 4; ++i) d[i] = mine.d[i];
}

}  // namespace emulated
#endif

FULMEN_FN void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(FULMEN_DEVICE_CODE)
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  emulated::mma_m16n8k16<DType::bf16>(d, a, b0, b1);
#endif
}

FULMEN_FN void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(FULMEN_DEVICE_CODE)
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  emulated::mma_m16n8k16<DType::f16>(d, a, b0, b1);
#endif
}

}  // namespace fulmen::ptx
