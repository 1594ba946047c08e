// RMSNorm, with the residual's sum in front of it: see norm.cuh.
#pragma once

#include <kernels/norm/norm.cuh>
#include <kernels/norm/rms_norm.params.hpp>

namespace fulmen {

template <NormConfig kC>
FULMEN_DEVICE void rms_norm(const RmsNormParams& p) {
  norm<kC, false>(p);
}

}  // namespace fulmen
