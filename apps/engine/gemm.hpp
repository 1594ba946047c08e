// Matrix products with fp16 weights and fp32 activations: y[r, n] = sum_k x[r, k] w[n, k] + bias[n].
//
// Every output is one chain of fused multiply-adds over k = 0, 1, ..., so the bits of a row depend neither on the
// other rows nor on the number of threads: a token gets the same value in prefill, in decode, alone or in a batch.
// One kernel serves a single row, where it is bound by reading the weights, and hundreds, where it is bound by
// arithmetic; docs/decisions/engine-matrix-product.md tells why it is not a library's.
#pragma once

#include "engine/buffer.hpp"
#include "engine/pool.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace fulmen::engine {

/// A weight matrix [rows, cols], rounded to fp16 and kept in panels of 32 outputs: panel[p][k][32].
class PackedMatrix {
 public:
  static constexpr int64_t kPanel = 32;

  PackedMatrix() = default;
  PackedMatrix(int64_t rows, int64_t cols);

  /// row(n, out) writes the fp32 values of row n, on any thread.
  using RowSource = std::function<void(int64_t row, float* out)>;
  void fill(Pool& pool, const RowSource& row);

  /// out[0 .. cols) = row n in fp32: the embedding of token n.
  void read_row(int64_t n, float* out) const;

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  size_t bytes() const { return data_.bytes(); }
  const uint16_t* panel(int64_t p) const { return data_.as<const uint16_t>() + p * cols_ * kPanel; }
  int64_t num_panels() const { return (rows_ + kPanel - 1) / kPanel; }

 private:
  int64_t rows_ = 0, cols_ = 0;
  Buffer data_;
};

/// Scratch of matmul, kept between calls.
struct MatmulScratch {
  std::vector<float> tiles;
};

/// y f32 [num_rows, w.rows()] with row stride y_stride; x f32 [num_rows, w.cols()] with row stride x_stride;
/// bias f32 [w.rows()] or null.
void matmul(Pool& pool, const PackedMatrix& w, const float* x, int64_t num_rows, int64_t x_stride, const float* bias,
            float* y, int64_t y_stride, MatmulScratch& scratch);

/// fp32 to fp16 (round to nearest even) and to bf16, and back, for the KV cache and tests.
void convert_to_f16(const float* in, int64_t count, uint16_t* out);
void convert_to_bf16(const float* in, int64_t count, uint16_t* out);
void convert_from_f16(const uint16_t* in, int64_t count, float* out);

/// Name of the SIMD target in use.
const char* simd_target();

/// sum of `count` floats, as a plain loop reads them: the read-bandwidth yardstick of `fulmen bench`.
float sum_floats(const float* data, int64_t count);

}  // namespace fulmen::engine
