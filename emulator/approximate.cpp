// Approximate instructions: they err by a fixed amount within the documented bound.
#include <cmath>

#include "emulator/runtime.hpp"

namespace fulmen::emulator {

namespace {

float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }

// The same argument always errs the same way, as in hardware: a hash of it picks the error within `bound`.
double error_of(float x, double bound) {
  uint64_t z = float_bits(x) * 0x9e3779b97f4a7c15ull;
  z ^= z >> 29;
  z *= 0xbf58476d1ce4e5b9ull;
  return bound * (static_cast<double>(z >> 11) * 0x1p-52 - 1.0);
}

}  // namespace

float approximate(Approximation function, float x) {
  Unobserved hidden;
  const double v = x;
  double exact = 0, absolute = 0, relative = 0;
  switch (function) {
    case Approximation::ex2: exact = std::exp2(static_cast<double>(flushed(x))); relative = 0x1p-23; break;
    case Approximation::lg2: exact = std::log2(static_cast<double>(flushed(x))); absolute = 0x1p-23; break;
    case Approximation::rcp: exact = 1.0 / static_cast<double>(flushed(x)); relative = 0x1p-24; break;
    case Approximation::rsqrt: exact = 1.0 / std::sqrt(static_cast<double>(flushed(x))); relative = 0x1p-24; break;
    case Approximation::tanh: exact = std::tanh(v); relative = 0x1p-11; break;
  }
  if (!std::isfinite(exact) || exact == 0.0) return static_cast<float>(exact);
  // Exact where the unit is: powers of two of integers, logarithms of powers of two.
  const bool simple = (function == Approximation::ex2 && v == std::nearbyint(v)) || (function == Approximation::lg2 && exact == std::nearbyint(exact)) ||
                      (function == Approximation::rcp && std::ilogb(v) == std::logb(v) && std::fabs(v) == std::ldexp(1.0, std::ilogb(v)));
  const double wrong = simple ? exact : exact * (1.0 + error_of(x, relative)) + error_of(x, absolute);
  const float result = static_cast<float>(wrong);
  return function == Approximation::tanh ? result : flushed(result);
}

}  // namespace fulmen::emulator
