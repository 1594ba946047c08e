// Which rope kernel runs, and on how many blocks.
#pragma once

#include "jit/unit.hpp"
#include "kernels/rope/rope.config.hpp"
#include "plan/targets.hpp"

namespace fulmen {

RopeConfig choose_rope(const RopeParams& params);
int64_t rope_grid(const RopeConfig& config, const RopeParams& params, const Target& target);
Unit rope_unit(const RopeConfig& config);

}  // namespace fulmen
