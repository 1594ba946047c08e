// Frequencies of rotary embeddings from theta and the scaling rule of the model.
#pragma once

#include <kernels/rope/rope.params.hpp>

#include "fulmen/fulmen.h"

namespace fulmen {

// rope: defaults (0) allowed. rotary_dim: even, at most 2 kMaxRotaryPairs. Throws Error(invalid_argument) in
// op's name.
RopeFrequencies rope_frequencies(const char* op, const fulmen_rope_params& rope, int rotary_dim);

}  // namespace fulmen
