// Which append_kv kernel runs, and on how many blocks.
#pragma once

#include "jit/unit.hpp"
#include "kernels/append_kv/append_kv.config.hpp"
#include "plan/targets.hpp"

namespace fulmen {

AppendKvConfig choose_append_kv(const AppendKvParams& params);
int64_t append_kv_grid(const AppendKvConfig& config, int64_t num_tokens, const Target& target);
Unit append_kv_unit(const AppendKvConfig& config);
std::vector<Unit> append_kv_units(const Target& target);

}  // namespace fulmen
