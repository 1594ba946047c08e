// Which linear kernel runs, and on how many blocks.
#pragma once

#include "jit/unit.hpp"
#include "kernels/linear/linear.config.hpp"
#include "plan/targets.hpp"

namespace fulmen {

LinearConfig choose_linear(const LinearParams& params);
int64_t linear_grid(const LinearConfig& config, const LinearParams& params);
Unit linear_unit(const LinearConfig& config);

}  // namespace fulmen
