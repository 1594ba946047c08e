// The ops on a CUDA device: ordered on the stream, nothing waited for, nothing allocated.
#pragma once

#include "core/context.hpp"
#include "kernels/append_kv/append_kv.params.hpp"

namespace fulmen::cuda {

void append_kv(const AppendKvParams& params, fulmen_context& context, void* stream);

}  // namespace fulmen::cuda
