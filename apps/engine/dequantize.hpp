#pragma once

#include <cstdint>

#include "engine/gguf.hpp"

namespace fulmen::engine {

/// Rows [first_row, first_row + num_rows) of a tensor as fp32, row after row: out holds
/// num_rows * tensor.row_elements() values. Exact: every value that the formats store is the product (or the
/// product and sum) in fp32 that ggml defines. Rows outside the tensor throw std::out_of_range.
void dequantize_to_float(const GgufTensor& tensor, int64_t first_row, int64_t num_rows, float* out);

/// The same rounded to IEEE binary16, to nearest even. Returns false if a value isn't finite in binary16.
bool dequantize_to_half(const GgufTensor& tensor, int64_t first_row, int64_t num_rows, uint16_t* out);

/// IEEE binary16 <-> fp32; to nearest even, subnormals and infinities included, every NaN becomes 0x7e00 +
/// sign.
float half_to_float(uint16_t half);
uint16_t float_to_half(float value);

}  // namespace fulmen::engine
