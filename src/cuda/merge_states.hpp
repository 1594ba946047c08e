// merge_states on a CUDA device: ordered on the stream, nothing waited for, nothing allocated.
#pragma once

#include "core/context.hpp"
#include "kernels/merge/merge_states.params.hpp"

namespace fulmen::cuda {

void merge_states(const MergeStatesParams& params, fulmen_context& context, void* stream);

}  // namespace fulmen::cuda
