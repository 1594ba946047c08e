#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

// Filters of a row's distribution; a row's own value where its tensor is given, else the scalar.
struct FilterParams {
  const float* temperatures;  // [num_rows], nullable, as the next three
  const int32_t* top_ks;
  const float* top_ps;
  const float* min_ps;
  float temperature;
  int32_t top_k;
  float top_p;
  float min_p;
  bool joint;  // each filter judges the unfiltered distribution
};

// tokens[r] ~ the filtered distribution of input row row_ids[r]; -1 for a bad row.
struct SampleParams {
  const void* input;        // dtype [num_input_rows, vocab]
  const uint64_t* seeds;    // [num_rows], nullable: seed
  const uint64_t* offsets;  // [num_rows], nullable: offset
  const int32_t* row_ids;   // [num_rows], nullable: identity
  int32_t* tokens;          // [num_rows]
  float* logprob;           // [num_rows], nullable
  FilterParams filter;
  uint64_t seed, offset;
  int64_t input_stride;
  int64_t num_input_rows, num_rows;
  int32_t vocab;
  DType dtype;  // f32 | f16 | bf16; probabilities: f32
  bool input_is_probs;
};

// output = the filtered distribution: probabilities that sum to 1, or logits with -inf outside; NaN for a bad
// row.
struct FilterOpParams {
  const void* input;  // dtype [num_rows, vocab]
  float* output;      // [num_rows, vocab], may be input
  FilterParams filter;
  int64_t input_stride, output_stride;
  int64_t num_rows;
  int32_t vocab;
  DType dtype;
  bool input_is_probs;
  bool output_is_logits;
};

// probs = softmax(logits / temperature)
struct SoftmaxParams {
  const void* logits;         // dtype [num_rows, vocab]
  float* probs;               // [num_rows, vocab], may be logits
  const float* temperatures;  // [num_rows], nullable: temperature
  float temperature;
  int64_t logits_stride, probs_stride;
  int64_t num_rows;
  int32_t vocab;
  DType dtype;
};

}  // namespace fulmen
