// What changes the machine code of the ops that read rows of a vocabulary.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

inline constexpr int64_t kMaxCudaVocab = int64_t{1} << 20;
inline constexpr int kMaxCudaTopK = 8192;  // a power of two: they are sorted in shared memory
inline constexpr int kRowBins = 256;   // of one round of a selection
inline constexpr int kRowList = 256;   // words that a selection ranks in pairs once so few are left
inline constexpr int kRowWarps = 8;    // of a block, at most
inline constexpr int kRowShared = 10368;  // bytes: RowShared of row.cuh

struct SamplingConfig {
  DType dtype;
  int vector_bytes;  // 16, or an element
  int threads;
  int cluster;       // blocks that share a row; 1 where the architecture has no clusters
  int held_bytes;    // of a block's part of the row that shared memory holds; the rest is read again from L2

  bool operator==(const SamplingConfig&) const = default;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("dtype", dtype);
    field("vector_bytes", vector_bytes);
    field("threads", threads);
    field("cluster", cluster);
    field("held_bytes", held_bytes);
  }
  constexpr int num_threads() const { return threads; }
  constexpr int num_warps() const { return threads / 32; }
  constexpr int min_blocks() const { return cluster == 1 ? 2 : 3; }  // what shared memory holds
  constexpr int cluster_blocks() const { return cluster; }
  constexpr int smem_bytes() const { return kRowShared + held_bytes; }
  constexpr int vector() const { return vector_bytes / dtype_bytes(dtype); }
  constexpr int group() const { return vector() < 4 ? vector() : 4; }  // words that a lane works on at a time
};

}  // namespace fulmen
