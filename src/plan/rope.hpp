// Which rope kernel runs, and on how many blocks.
#pragma once

#include "jit/unit.hpp"
#include "kernels/rope/rope.config.hpp"
#include "kernels/rope/rope_append.params.hpp"
#include "plan/targets.hpp"

namespace fulmen {

RopeConfig choose_rope(const RopeParams& params);
int64_t rope_grid(const RopeParams& params);
Unit rope_unit(const RopeConfig& config);

RopeConfig choose_rope_append(const RopeAppendParams& params);
Unit rope_append_unit(const RopeConfig& config);

}  // namespace fulmen
