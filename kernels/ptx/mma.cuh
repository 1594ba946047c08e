// mma.sync m16n8k16 (sm_80): d[16, 8] += a[16, 16] b[16, 8], fp32 accumulators.
// Lane 4g + t holds  a: {row g, cols 2t..}, {row g + 8, cols 2t..}, {row g, cols 2t + 8..}, {row g + 8, cols 2t + 8..}
//                    b: {rows 2t, 2t + 1 of column g}, {rows 2t + 8, 2t + 9 of column g}
//                    d: {row g, cols 2t, 2t + 1}, {row g + 8, cols 2t, 2t + 1}
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen::ptx {

FULMEN_FN void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

FULMEN_FN void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(FULMEN_DEVICE_CODE)
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

}  // namespace fulmen::ptx
