// What changes the machine code of act_and_mul.
#pragma once

#include <kernels/activation/act_and_mul.params.hpp>

namespace fulmen {

constexpr const char* enumerator(Activation a) {
  return a == Activation::silu ? "Activation::silu" : a == Activation::gelu ? "Activation::gelu" : "Activation::gelu_tanh";
}

struct ActAndMulConfig {
  DType dtype;
  Activation activation;
  int vector_bytes;  // 16, or an element
  int threads;

  bool operator==(const ActAndMulConfig&) const = default;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("dtype", dtype);
    field("activation", activation);
    field("vector_bytes", vector_bytes);
    field("threads", threads);
  }
  constexpr int num_threads() const { return threads; }
  constexpr int vector() const { return vector_bytes / dtype_bytes(dtype); }
};

// Vectors of a row that one block takes at most: kActSpan * threads.
inline constexpr int kActSpan = 2;

}  // namespace fulmen
