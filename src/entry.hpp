// What the entries of the row-wise ops share: which back end, and rows of tensors with or without a head
// dimension.
#pragma once

#include <initializer_list>
#include <kernels/prelude/prelude.hpp>
#include <limits>

#include "core/args.hpp"
#include "core/check.hpp"
#include "core/context.hpp"

namespace fulmen {

constexpr std::initializer_list<int32_t> kFloatDtypes = {FULMEN_F32, FULMEN_F16, FULMEN_BF16};

// A tensor may name its device; it must be the context's.
inline void check_device(const char* op, const char* name, const fulmen_tensor& t,
                         const fulmen_context& context) {
  require(t.device == 0 || t.device == context.device_type,
          "{}: {}: expected a tensor on {}, found one on {}", op, name,
          context.is_cpu() ? "the CPU" : "the CUDA device",
          t.device == FULMEN_CPU ? "the CPU" : "another device");
}

// A size that kernels hold in 32 bits.
inline int32_t checked_int32(const char* op, const char* what, int64_t value) {
  require(value >= 0 && value <= std::numeric_limits<int32_t>::max(),
          "{}: {}: expected at most 2^31 - 1, found {}", op, what, value);
  return static_cast<int32_t>(value);
}

// Rows of [num_tokens, width] or [num_tokens, num_heads, width].
struct RowLayout {
  int64_t stride_token = 0, stride_head = 0;
};

inline RowLayout row_layout(const fulmen_tensor& t) {
  return t.ndim == 3 ? RowLayout{t.stride[0], t.stride[1]} : RowLayout{t.stride[0], 0};
}

// Sizes of x are bound by the first tensor; every other tensor of the op has the same.
struct RowSizes {
  Sym num_tokens{"num_tokens"}, num_heads{"num_heads"}, width;
  explicit RowSizes(const char* width_name) : width{width_name} {}

  void check(const char* op, const char* name, const fulmen_tensor& t, const fulmen_context& context) {
    const Check check(op, name, t);
    check.present().rows().aligned();
    check_device(op, name, t, context);
    if (num_heads.value < 0 && num_tokens.value < 0) {
      require(t.ndim == 2 || t.ndim == 3, "{}: {}: expected 2 or 3 dimensions, found {}", op, name, t.ndim);
      three_dims_ = t.ndim == 3;
    }
    if (three_dims_) {
      check.dims({num_tokens, num_heads, width});
    } else {
      check.dims({num_tokens, width});
    }
  }
  int64_t heads() const { return three_dims_ ? num_heads.value : 1; }

 private:
  bool three_dims_ = false;
};

// Rows of [num_rows, width].
inline void check_rows(const char* op, const char* name, const fulmen_tensor& t,
                       std::initializer_list<int32_t> dtypes, Dim num_rows, Dim width, const fulmen_context& context) {
  Check(op, name, t).present().dtype(dtypes).dims({num_rows, width}).rows().aligned();
  check_device(op, name, t, context);
}

// A vector along the row: weights, biases, one value per row.
inline void check_vector(const char* op, const char* name, const fulmen_tensor& t, Dim size,
                         std::initializer_list<int32_t> dtypes, const fulmen_context& context) {
  Check(op, name, t).present().dtype(dtypes).dims({size}).rows().aligned();
  check_device(op, name, t, context);
}

}  // namespace fulmen
