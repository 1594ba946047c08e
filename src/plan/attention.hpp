// The schedule's shape for a spec and its limits, per back end. Pure: no device, no environment.
#pragma once

#include <kernels/attention/schedule.hpp>

#include "fulmen/fulmen.h"

namespace fulmen {

// Throws invalid_argument in the name of "attention_create" for limits that can't be.
void check_attention_limits(const fulmen_attention_limits& limits);

// What both back ends share: limits and groups, canon or not. Tiles, costs and workers are left at 0.
ScheduleShape attention_shape(const fulmen_attention_spec& spec, const fulmen_attention_limits& limits);

// threads: that the context has. The CPU always works in the canon.
ScheduleShape attention_shape_cpu(const fulmen_attention_spec& spec, const fulmen_attention_limits& limits,
                                  int32_t threads);

}  // namespace fulmen
