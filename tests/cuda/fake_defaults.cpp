// Every entry point that Fulmen looks for, doing nothing. Weak: fake_driver.cpp defines those that matter again.
#include "cuda/driver.hpp"

namespace fulmen::cuda {
#define FULMEN_FAKE(name, symbol, args)                                                              \
  extern "C" Result fake_default_##name args __asm__(symbol);                                        \
  extern "C" __attribute__((weak, visibility("default"))) Result fake_default_##name args { return 0; }
FULMEN_CUDA_REQUIRED(FULMEN_FAKE)
FULMEN_CUDA_OPTIONAL(FULMEN_FAKE)
}  // namespace fulmen::cuda
