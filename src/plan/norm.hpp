// Which norm kernel runs, and on how many blocks.
#pragma once

#include "jit/unit.hpp"
#include "kernels/norm/layer_norm.params.hpp"
#include "kernels/norm/norm.config.hpp"
#include "kernels/norm/rms_norm.params.hpp"
#include "plan/targets.hpp"

namespace fulmen {

NormConfig choose_rms_norm(const RmsNormParams& params);
NormConfig choose_layer_norm(const LayerNormParams& params);
int64_t norm_grid(const NormConfig& config, int64_t rows, bool adds, const Target& target);  // adds: a residual
Unit rms_norm_unit(const NormConfig& config);
Unit layer_norm_unit(const NormConfig& config);

}  // namespace fulmen
