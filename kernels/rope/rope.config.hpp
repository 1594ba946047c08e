// What changes the machine code of rope.
#pragma once

#include <kernels/rope/rope.params.hpp>

namespace fulmen {

struct RopeConfig {
  DType dtype;
  bool interleaved;
  int vector_bytes;  // 16, or an element
  int threads;

  bool operator==(const RopeConfig&) const = default;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("dtype", dtype);
    field("interleaved", interleaved);
    field("vector_bytes", vector_bytes);
    field("threads", threads);
  }
  constexpr int num_threads() const { return threads; }
  constexpr int min_blocks() const { return 5; }  // 96 registers a thread
  constexpr int vector() const { return vector_bytes / dtype_bytes(dtype); }
  // Pairs that one thread turns at a time.
  constexpr int pairs() const { return interleaved ? (vector() + 1) / 2 : vector(); }
};

}  // namespace fulmen
