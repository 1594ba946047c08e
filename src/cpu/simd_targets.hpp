// The SIMD targets that the row-wise ops are compiled for: AVX-512, AVX2 and plain code (each costs compile time).
// Included before any Highway header.
#pragma once

#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
