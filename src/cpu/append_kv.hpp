// Copies new keys and values into the paged cache.
#pragma once

#include <kernels/append_kv/append_kv.params.hpp>

#include "core/pool.hpp"

namespace fulmen::cpu {

void append_kv(const AppendKvParams& params, const Pool& pool);

}  // namespace fulmen::cpu
