// From specs to the kernels they need.
#pragma once

#include <vector>

#include "fulmen/fulmen.h"
#include "jit/shipped.hpp"

namespace fulmen {

// Checks the specs, in the name of `op`, and returns each kernel once. No specs: all that Fulmen ships. A spec stands for
// the shipped kernels of its op and dtype; an attention with limits for exactly the two kernels that its handle would make.
std::vector<ShippedKernel> kernels_of_specs(const char* op, const Target& target, const fulmen_op_spec* specs,
                                            int32_t num_specs);

}  // namespace fulmen
