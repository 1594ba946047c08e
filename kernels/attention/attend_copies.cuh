// Tiles of K and V from global to shared memory.
#pragma once

#include <kernels/attention/attend_smem.cuh>
#include <kernels/ptx/cp_async.cuh>
#include <kernels/tile/fragments.cuh>

namespace fulmen {

// One tile of kKeys rows of K or V by kThreads threads: each copies one chunk of several neighbouring rows. Chunks past the
// true head size and rows without a place are filled with zeros.
template <int kDim, int kKeys, int kThreads>
struct TileCopy {
  static constexpr int kChunks = kDim / 8;  // of 16 bytes in a row
  static constexpr int kRows = kKeys * kChunks / kThreads;
  static_assert(kThreads % kChunks == 0, "whole groups of rows");

  static FULMEN_FN int first_row(int thread) { return thread / kChunks * kRows; }
  // Rows from, from + 1, ... of the thread's.
  template <int kCount>
  static FULMEN_FN void copy(uint32_t tile, const void* data, const uint32_t (&at)[kCount], int from, int head_dim, int thread) {
    const int chunk = thread % kChunks, first = first_row(thread);
    const bool padding = 8 * chunk >= head_dim;
    const char* column = static_cast<const char*>(data) + (padding ? 0 : 16 * chunk);
    const uint32_t rows = tile + first * (kDim * 2);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      // `first` is a multiple of 8 wherever a thread has 8 rows or more.
      const int row = (kRows % 8 == 0 ? 0 : first) + from + i;
      const uint32_t to = rows + (from + i) * (kDim * 2) + ((chunk ^ (row & 7)) << 4);
      ptx::cp_async_16(to, column + static_cast<uint64_t>(at[i]) * 16, padding || at[i] == kNoPlace);
    }
  }
};

// Places of kCount neighbouring rows from shared memory.
template <int kCount>
FULMEN_FN void read_places(uint32_t (&at)[kCount], const uint32_t* places) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    if constexpr (kCount % 4 == 0) {
      const ptx::Words4 four = *reinterpret_cast<const ptx::Words4*>(places + i);
      at[i] = four.x, at[i + 1] = four.y, at[i + 2] = four.z, at[i + 3] = four.w;
    } else {
#pragma unroll
      for (int k = i; k < kCount && k < i + 4; ++k) at[k] = places[k];
    }
  }
}

template <int kDim, int kKeys, int kThreads>
FULMEN_FN void copy_tile(uint32_t tile, const void* data, const uint32_t* places, int head_dim, int thread) {
  using Copy = TileCopy<kDim, kKeys, kThreads>;
  constexpr int kAtOnce = Copy::kRows < 4 ? Copy::kRows : 4;
  static_assert(Copy::kRows % kAtOnce == 0, "whole groups of rows");
#pragma unroll
  for (int i = 0; i < Copy::kRows; i += kAtOnce) {
    uint32_t at[kAtOnce];
    read_places(at, places + Copy::first_row(thread) + i);
    Copy::copy(tile, data, at, i, head_dim, thread);
  }
}

// The same for rows at any address: through registers, element by element.
template <int kDim, int kKeys, int kThreads>
FULMEN_FN void gather_tile(unsigned char* tile, const KvStorage& kv, int page_size, int head, const uint32_t* places,
                           int head_dim, int thread) {
  constexpr int kChunks = kDim / 8;
#pragma unroll 1
  for (int i = thread; i < kKeys * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const uint32_t place = places[row];
    ptx::Words4 words{0, 0, 0, 0};
    if (place != kNoPlace && 8 * chunk < head_dim) {
      const uint32_t page = place / static_cast<uint32_t>(page_size), token = place - page * page_size;
      words = gather_8(static_cast<const uint16_t*>(kv.data) + page * kv.stride_page + token * kv.stride_token +
                       head * kv.stride_head + 8 * chunk);
    }
    *reinterpret_cast<ptx::Words4*>(tile + tile_offset<kDim>(row, chunk)) = words;
  }
}

// A tile of K or V of one kv head, by the way that the config names.
template <AttendSm80Config kC, int kDim, int kThreads>
FULMEN_FN void copy_keys(const AttendSmem<kC>& smem, uint32_t tile, const AttendSm80Params& params, const KvStorage& kv,
                         int head, const uint32_t* places, int head_dim, int thread) {
  if constexpr (kC.general) {
    gather_tile<kDim, kC.step_keys, kThreads>(smem.at(tile), kv, params.page_size, head, places, head_dim, thread);
  } else {
    copy_tile<kDim, kC.step_keys, kThreads>(tile, kv.data, places, head_dim, thread);
  }
}

}  // namespace fulmen
