// LayerNorm: see norm.cuh.
#pragma once

#include <kernels/norm/layer_norm.params.hpp>
#include <kernels/norm/norm.cuh>

namespace fulmen {

template <NormConfig kC>
FULMEN_DEVICE void layer_norm(const LayerNormParams& p) {
  norm<kC, true>(p);
}

}  // namespace fulmen
