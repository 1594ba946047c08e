// Which act_and_mul kernel runs, and on how many blocks.
#pragma once

#include "jit/unit.hpp"
#include "kernels/activation/act_and_mul.config.hpp"
#include "plan/targets.hpp"

namespace fulmen {

ActAndMulConfig choose_act_and_mul(const ActAndMulParams& params);
int64_t act_and_mul_grid(const ActAndMulConfig& config, const ActAndMulParams& params, const Target& target);
Unit act_and_mul_unit(const ActAndMulConfig& config);

}  // namespace fulmen
