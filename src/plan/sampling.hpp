// Which kernels of the ops that read rows of a vocabulary run, and on how many blocks.
#pragma once

#include "jit/unit.hpp"
#include "kernels/sampling/argmax.params.hpp"
#include "kernels/sampling/sampling.config.hpp"
#include "kernels/sampling/sampling.params.hpp"
#include "kernels/topk/top_k.params.hpp"
#include "plan/targets.hpp"

namespace fulmen {

// Rows of `dtype` at x, row_stride elements apart; holds: they are read more than once.
SamplingConfig choose_sampling(DType dtype, const void* x, int64_t row_stride, bool holds, const Target& target);
int64_t sampling_grid(const SamplingConfig& config, int64_t rows);

Unit sample_unit(const SamplingConfig& config);
Unit filter_unit(const SamplingConfig& config);
Unit softmax_unit(const SamplingConfig& config);
Unit argmax_unit(const SamplingConfig& config);
Unit top_k_unit(const SamplingConfig& config);

}  // namespace fulmen
