// Which merge_states kernel runs, and on how many blocks.
#pragma once

#include "jit/unit.hpp"
#include "kernels/merge/merge_states.config.hpp"
#include "plan/targets.hpp"

namespace fulmen {

MergeStatesConfig choose_merge_states(const MergeStatesParams& params);
int64_t merge_states_grid(const MergeStatesConfig& config, const MergeStatesParams& params,
                          const Target& target);
Unit merge_states_unit(const MergeStatesConfig& config);
std::vector<Unit> merge_states_units(const Target& target);

}  // namespace fulmen
