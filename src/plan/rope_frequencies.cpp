// Sources: linear: kaiokendev, SuperHOT (2023). llama31: the rope_scaling of Meta's Llama 3.1 release. yarn:
// Peng, Quesnelle, Fan, Shippole: YaRN (arXiv 2309.00071), with the ramp between whole dimensions as its
// authors' code has it.
#include "plan/rope_frequencies.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"

namespace fulmen {
namespace {

constexpr double kTwoPi = 6.283185307179586476925;

double or_default(float value, double otherwise) {
  return value == 0.0f ? otherwise : static_cast<double>(value);
}

double llama31(double frequency, const fulmen_rope_params& rope) {
  const double wavelength = kTwoPi / frequency;
  const double context = rope.original_context;
  if (wavelength < context / rope.high_freq_factor) return frequency;
  if (wavelength > context / rope.low_freq_factor) return frequency / rope.factor;
  const double smooth = (context / wavelength - rope.low_freq_factor) /
                        (static_cast<double>(rope.high_freq_factor) - rope.low_freq_factor);
  return (1.0 - smooth) * frequency / rope.factor + smooth * frequency;
}

// The dimension (not rounded) whose wave turns `turns` times over the original context.
double yarn_dim(double turns, double theta, int rotary_dim, double context) {
  return rotary_dim * std::log(context / (turns * kTwoPi)) / (2.0 * std::log(theta));
}

}  // namespace

RopeFrequencies rope_frequencies(const char* op, const fulmen_rope_params& rope, int rotary_dim) {
  const double theta = or_default(rope.theta, 10000.0);
  const double factor = or_default(rope.factor, 1.0);
  require(theta > 0.0 && std::isfinite(theta), "{}: theta: expected a positive number, found {}", op,
          rope.theta);
  require(factor > 0.0 && std::isfinite(factor), "{}: factor: expected a positive number, found {}", op,
          rope.factor);
  require(rope.scaling >= FULMEN_ROPE_NONE && rope.scaling <= FULMEN_ROPE_YARN,
          "{}: scaling: expected a fulmen_rope_scaling, found {}", op, rope.scaling);
  if (rope.scaling == FULMEN_ROPE_LLAMA31 || rope.scaling == FULMEN_ROPE_YARN) {
    require(rope.original_context > 0, "{}: original_context: expected a positive number, found {}", op,
            rope.original_context);
  }
  if (rope.scaling == FULMEN_ROPE_LLAMA31) {
    require(rope.low_freq_factor > 0 && rope.high_freq_factor > rope.low_freq_factor,
            "{}: low_freq_factor, high_freq_factor: expected 0 < low < high, found {} and {}", op,
            rope.low_freq_factor, rope.high_freq_factor);
  }

  double low = 0.0, high = 0.0;
  RopeFrequencies result{};
  result.scale = 1.0f;
  if (rope.scaling == FULMEN_ROPE_YARN) {
    require(theta > 1.0, "{}: theta: expected more than 1 with yarn, found {}", op, rope.theta);
    require(or_default(rope.beta_fast, 32.0) > 0.0 && std::isfinite(rope.beta_fast), "{}: beta_fast: expected a positive number, found {}",
            op, rope.beta_fast);
    require(or_default(rope.beta_slow, 1.0) > 0.0 && std::isfinite(rope.beta_slow), "{}: beta_slow: expected a positive number, found {}",
            op, rope.beta_slow);
    require(std::isfinite(rope.attention_factor), "{}: attention_factor: expected a number, found {}", op, rope.attention_factor);
    low = std::floor(yarn_dim(or_default(rope.beta_fast, 32.0), theta, rotary_dim, rope.original_context));
    high = std::ceil(yarn_dim(or_default(rope.beta_slow, 1.0), theta, rotary_dim, rope.original_context));
    low = std::max(low, 0.0);
    high = std::min(high, rotary_dim - 1.0);
    if (low == high) high += 0.001;
    result.scale = static_cast<float>(
        or_default(rope.attention_factor, factor <= 1.0 ? 1.0 : 0.1 * std::log(factor) + 1.0));
  }

  for (int pair = 0; pair < rotary_dim / 2; ++pair) {
    double frequency = std::pow(theta, -2.0 * pair / rotary_dim);
    if (rope.scaling == FULMEN_ROPE_LINEAR) {
      frequency /= factor;
    } else if (rope.scaling == FULMEN_ROPE_LLAMA31) {
      fulmen_rope_params with_factor = rope;
      with_factor.factor = static_cast<float>(factor);
      frequency = llama31(frequency, with_factor);
    } else if (rope.scaling == FULMEN_ROPE_YARN) {
      const double ramp = std::clamp((pair - low) / (high - low), 0.0, 1.0);
      frequency = frequency / factor * ramp + frequency * (1.0 - ramp);
    }
    // Whole turns don't matter; what is left fits 64 bits.
    const double turns = frequency / kTwoPi;
    result.step[pair] = static_cast<uint64_t>(std::ldexp(turns - std::floor(turns), 64));
  }
  return result;
}

}  // namespace fulmen
