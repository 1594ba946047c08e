// Attention on the CPU, in the canon's order of arithmetic (kernels/math/canon.hpp): results don't depend on threads.
#pragma once

#include <kernels/attention/attention.params.hpp>

#include "core/pool.hpp"

namespace fulmen::cpu {

// Bytes of params.scratch: the slots of partial states, then working memory for each thread.
int64_t attention_scratch_bytes(const ScheduleShape& shape, int32_t head_dim_qk, int32_t head_dim_vo, int32_t threads);

// `threads`: as in attention_scratch_bytes. Returns when o and lse are written.
void attention(const AttentionParams& params, const Pool& pool, int32_t threads);

// Name of the engine and SIMD target that a spec of this dtype would use.
const char* attention_engine_name(DType kv_dtype, uint32_t features);

}  // namespace fulmen::cpu
