// What changes the machine code of rms_norm and layer_norm.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

struct NormConfig {
  DType dtype, weight_dtype;
  int vector_bytes;  // of one access to x: 16 where addresses and strides allow, else an element
  int threads;       // of the block that has a row

  bool operator==(const NormConfig&) const = default;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("dtype", dtype);
    field("weight_dtype", weight_dtype);
    field("vector_bytes", vector_bytes);
    field("threads", threads);
  }
  constexpr int num_threads() const { return threads; }
  constexpr int min_blocks() const { return threads <= 32 ? 16 : threads <= 256 ? 640 / threads : 1; }  // 96 registers a thread
  constexpr int vector() const { return vector_bytes / dtype_bytes(dtype); }
};

// Vectors that a thread keeps in registers between reading a row and writing it; longer rows are read again.
inline constexpr int kNormHeld = 4;

// Blocks of so many threads at most read a row ahead, where no residual is added; else there are no registers for it.
inline constexpr int kNormPipelined = 256;

}  // namespace fulmen
