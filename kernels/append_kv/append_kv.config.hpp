// What changes the machine code of append_kv.
#pragma once

#include <kernels/append_kv/append_kv.params.hpp>

namespace fulmen {

struct AppendKvConfig {
  int element_bytes;  // 2 or 4
  int vector_bytes;   // of one access: 16 where addresses and strides allow, else an element
  int threads;

  bool operator==(const AppendKvConfig&) const = default;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("element_bytes", element_bytes);
    field("vector_bytes", vector_bytes);
    field("threads", threads);
  }
  constexpr int num_threads() const { return threads; }
  constexpr int vector() const { return vector_bytes / element_bytes; }  // elements of an access
};

}  // namespace fulmen
