// Matrix tiles of 16-bit elements in shared memory and their mma.sync fragments.
//
// A tile has kDim elements per row, kDim a multiple of 64. The 16-byte chunk c of row r lies at chunk c ^ (r & 7) of
// that row, so that the eight rows that one 8x8 matrix of ldmatrix touches fall on different banks.
#pragma once

#include <kernels/prelude/prelude.hpp>
#include <kernels/ptx/cvt.cuh>
#include <kernels/ptx/ldmatrix.cuh>
#include <kernels/ptx/mma.cuh>

namespace fulmen {

template <int kDim>
FULMEN_FN uint32_t tile_offset(int row, int chunk) {
  static_assert(kDim % 64 == 0, "a row is a multiple of 128 bytes");
  return static_cast<uint32_t>(row * (kDim * 2) + ((chunk ^ (row & 7)) << 4));
}

// Where in a tile a lane's row of the fragments below begins. The chunks of step (or pair) i are at this place ^ i << 5, as a
// row and the tile begin at multiples of its length; 16 rows further is an addition.
template <int kDim>
FULMEN_FN uint32_t lane_a(int row0, int lane) {
  return tile_offset<kDim>(row0 + (lane & 15), lane >> 4);
}
template <int kDim>
FULMEN_FN uint32_t lane_b_rows(int lane) {
  return tile_offset<kDim>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
}
template <int kDim>
FULMEN_FN uint32_t lane_b_cols(int lane) {
  return tile_offset<kDim>(lane & 15, lane >> 4);
}

// A operand: rows row0 .. row0 + 15, elements 16 step .. 16 step + 15.
template <int kDim>
FULMEN_FN void load_a(uint32_t (&a)[4], uint32_t tile, int row0, int step, int lane) {
  ptx::ldmatrix_x4(a, tile + tile_offset<kDim>(row0 + (lane & 15), 2 * step + (lane >> 4)));
}

// B operand of scores, twice: rows (keys) row0 .. row0 + 15 are two n8 tiles, elements 16 step .. 16 step + 15 are k.
template <int kDim>
FULMEN_FN void load_b_rows(uint32_t (&b)[4], uint32_t tile, int row0, int step, int lane) {
  ptx::ldmatrix_x4(b, tile + tile_offset<kDim>(row0 + (lane & 7) + ((lane >> 4) << 3), 2 * step + ((lane >> 3) & 1)));
}

// B operand of the output, twice: rows (keys) row0 .. row0 + 15 are k, elements 16 pair .. 16 pair + 15 two n8 tiles.
template <int kDim>
FULMEN_FN void load_b_cols(uint32_t (&b)[4], uint32_t tile, int row0, int pair, int lane) {
  ptx::ldmatrix_x4_trans(b, tile + tile_offset<kDim>(row0 + (lane & 15), 2 * pair + (lane >> 4)));
}

template <DType kType>
FULMEN_FN void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(kType == DType::bf16 || kType == DType::f16, "16-bit operands");
  if constexpr (kType == DType::bf16) {
    ptx::mma_m16n8k16_bf16(d, a, b0, b1);
  } else {
    ptx::mma_m16n8k16_f16(d, a, b0, b1);
  }
}

template <DType kType>
FULMEN_FN uint32_t pack(float low, float high) {
  if constexpr (kType == DType::bf16) {
    return ptx::cvt_bf16x2(low, high);
  } else {
    return ptx::cvt_f16x2(low, high);
  }
}

}  // namespace fulmen
