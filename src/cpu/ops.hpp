// The row-wise ops of the CPU back end. Parameters were checked by the entries; each returns when its work is
// done.
#pragma once

#include <kernels/activation/act_and_mul.params.hpp>
#include <kernels/linear/linear.params.hpp>
#include <kernels/norm/layer_norm.params.hpp>
#include <kernels/norm/rms_norm.params.hpp>
#include <kernels/rope/rope.params.hpp>
#include <kernels/rope/rope_append.params.hpp>
#include <kernels/sampling/argmax.params.hpp>
#include <kernels/sampling/sampling.params.hpp>
#include <kernels/topk/top_k.params.hpp>

#include "core/pool.hpp"

namespace fulmen::cpu {

void rms_norm(const RmsNormParams& params, const Pool& pool);
void layer_norm(const LayerNormParams& params, const Pool& pool);
void rope(const RopeParams& params, const Pool& pool);
void rope_append(const RopeAppendParams& params, const Pool& pool);
void linear(const LinearParams& params, const Pool& pool);
void act_and_mul(const ActAndMulParams& params, const Pool& pool);
void argmax(const ArgmaxParams& params, const Pool& pool);
void softmax(const SoftmaxParams& params, const Pool& pool);
void sample(const SampleParams& params, const Pool& pool);
void filter(const FilterOpParams& params, const Pool& pool);
void top_k(const TopKParams& params, const Pool& pool);

// Whether a call that moves this many bytes should write its results past the caches: what it wrote first would be gone
// from them before anybody reads it, and a plain store fetches the line that it overwrites.
inline bool beyond_cache(int64_t bytes) { return bytes >= int64_t{16} << 20; }

// Calls body(first, last) for ranges of rows that together hold about 64 thousand elements, in parallel.
template <class Body>
void for_rows(const Pool& pool, int64_t num_rows, int64_t elements_per_row, const Body& body) {
  constexpr int64_t kElements = 64 * 1024;
  const int64_t by_size = kElements / (elements_per_row < 1 ? 1 : elements_per_row);
  const int64_t fair = (num_rows + pool.num_threads() - 1) / pool.num_threads();
  const int64_t want = by_size < fair ? by_size : fair;
  const int64_t step = want < 1 ? 1 : want;
  const int64_t count = (num_rows + step - 1) / step;
  pool.parallel_for(count, [&](int64_t i) {
    const int64_t first = i * step;
    body(first, first + step < num_rows ? first + step : num_rows);
  });
}

}  // namespace fulmen::cpu
