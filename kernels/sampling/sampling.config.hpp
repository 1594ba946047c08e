// What changes the machine code of the ops that read rows of a vocabulary.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

// A block has a row. Sizes of what it keeps in shared memory:
inline constexpr int kBinCount = 2048;   // bins of the value range, the last for all that lies below it
inline constexpr int kListSize = 8192;   // words that are ranked in shared memory; more are ranked by bisection
inline constexpr int kTileWords = 1024;  // words of a tile, which one warp sums
inline constexpr int kMaxTiles = 1024;
inline constexpr int64_t kMaxCudaVocab = int64_t{kTileWords} * kMaxTiles;

struct RowScratchShared {
  uint32_t count[kBinCount];
  uint32_t mass[kBinCount];      // mass >> shift: a lower bound that can't overflow
  uint64_t list[kListSize];      // words: (~key << 32 | index) while ranked, (index << 32 | ~key) in index order
  uint64_t tile_mass[kMaxTiles];
  uint32_t tile_ties[kMaxTiles];
  uint64_t result_mass;
  uint32_t list_count;
  int32_t result, result_bin;
};

struct SamplingConfig {
  DType dtype;
  int vector_bytes;  // 16, or an element
  int threads;
  bool scratch;      // needs RowScratchShared

  bool operator==(const SamplingConfig&) const = default;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("dtype", dtype);
    field("vector_bytes", vector_bytes);
    field("threads", threads);
    field("scratch", scratch);
  }
  constexpr int num_threads() const { return threads; }
  constexpr int min_blocks() const { return 2; }  // 64 registers a thread, two rows a multiprocessor
  constexpr int smem_bytes() const { return scratch ? static_cast<int>(sizeof(RowScratchShared)) : 0; }
  constexpr int vector() const { return vector_bytes / dtype_bytes(dtype); }
};

}  // namespace fulmen
