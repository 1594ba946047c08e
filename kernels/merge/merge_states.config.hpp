// What changes the machine code of merge_states.
#pragma once

#include <kernels/merge/merge_states.params.hpp>

namespace fulmen {

struct MergeStatesConfig {
  DType dtype;
  int vector_bytes;  // of one access: 16 where addresses and strides allow, else an element
  int threads;       // a warp has a (row, head)

  bool operator==(const MergeStatesConfig&) const = default;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("dtype", dtype);
    field("vector_bytes", vector_bytes);
    field("threads", threads);
  }
  constexpr int num_threads() const { return threads; }
  constexpr int vector() const { return vector_bytes / dtype_bytes(dtype); }
};

}  // namespace fulmen
