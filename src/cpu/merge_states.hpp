// Joins partial attention states.
#pragma once

#include <kernels/merge/merge_states.params.hpp>

#include "core/pool.hpp"

namespace fulmen::cpu {

void merge_states(const MergeStatesParams& params, const Pool& pool);

}  // namespace fulmen::cpu
