// Sampling by sorting: the definition of docs/sampling.md, written plainly. Masses come from kernels/math,
// because their bits are part of the definition; nothing else is shared.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <kernels/math/mass.hpp>
#include <kernels/math/random.hpp>
#include <numeric>
#include <vector>

namespace reference {

struct Filters {
  float temperature = 1.0f, top_p = 1.0f, min_p = 0.0f;
  int top_k = 0;
  bool joint = false, is_probs = false;
};

inline bool bad_filters(const Filters& f) {
  const bool bad_temperature = !f.is_probs && !(f.temperature >= 0.0f && std::isfinite(f.temperature));
  return bad_temperature || std::isnan(f.top_p) || f.top_p < 0.0f || std::isnan(f.min_p) || f.min_p > 1.0f;
}

// ceil(p * mass), at least 1, in 128-bit arithmetic from the decimal definition of p's bits.
inline uint64_t share(float p, uint64_t mass) {
  if (p >= 1.0f) return mass;
  int exponent = 0;
  const double fraction = std::frexp(static_cast<double>(p), &exponent);  // p = fraction 2^exponent
  unsigned __int128 value =
      static_cast<unsigned __int128>(std::ldexp(fraction, 24)) * mass;  // p mass 2^(24 - exponent)
  const int shift = 24 - exponent;
  if (shift >= 127) return 1;
  const unsigned __int128 one = 1;
  const unsigned __int128 up = (value + (one << shift) - 1) >> shift;
  return up == 0 ? 1 : static_cast<uint64_t>(up);
}

// Empty: the row has no distribution. Masses of all words.
inline std::vector<uint64_t> masses(const std::vector<double>& x, const Filters& f) {
  for (double v : x) {
    if (std::isnan(v) || (f.is_probs && (v < 0.0 || v > 2.0))) return {};
  }
  std::vector<uint64_t> mass(x.size());
  const double top = *std::max_element(x.begin(), x.end());
  if (!std::isfinite(top)) return {};
  for (size_t i = 0; i < x.size(); ++i) {
    const auto value = static_cast<float>(x[i]);
    mass[i] = f.is_probs ? fulmen::mass_of(value)
                         : fulmen::logit_mass(value, static_cast<float>(top),
                                              fulmen::inverse_temperature(f.temperature));
  }
  if (*std::max_element(mass.begin(), mass.end()) == 0) return {};
  return mass;
}

// Which words stay.
inline std::vector<bool> kept(const std::vector<double>& x, const std::vector<uint64_t>& mass,
                              const Filters& f) {
  std::vector<size_t> ranking(x.size());
  std::iota(ranking.begin(), ranking.end(), size_t{0});
  std::stable_sort(ranking.begin(), ranking.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
  const size_t k =
      f.top_k > 0 && static_cast<size_t>(f.top_k) < x.size() ? static_cast<size_t>(f.top_k) : x.size();
  uint64_t total = 0;
  for (size_t i = 0; i < (f.joint ? x.size() : k); ++i) total += mass[ranking[i]];
  const uint64_t largest = *std::max_element(mass.begin(), mass.end());
  std::vector<bool> stays(x.size(), false);
  uint64_t running = 0;
  for (size_t i = 0; i < k; ++i) {
    const size_t word = ranking[i];
    stays[word] = f.min_p <= 0.0f || mass[word] >= share(f.min_p, largest);
    running += mass[word];
    if (f.top_p < 1.0f && running >= share(f.top_p, total)) break;
  }
  return stays;
}

inline int sample(const std::vector<double>& x, const Filters& f, uint64_t seed, uint64_t offset,
                  uint32_t place) {
  if (bad_filters(f)) return -1;
  if (!f.is_probs && f.temperature == 0.0f) {
    for (double v : x) {
      if (std::isnan(v)) return -1;
    }
    return static_cast<int>(std::max_element(x.begin(), x.end()) - x.begin());
  }
  const auto mass = masses(x, f);
  if (mass.empty()) return -1;
  const auto stays = kept(x, mass, f);
  uint64_t total = 0;
  for (size_t i = 0; i < x.size(); ++i) total += stays[i] ? mass[i] : 0;
  const unsigned __int128 product =
      static_cast<unsigned __int128>(fulmen::random_bits(seed, offset, place, 0)) * total;
  const auto draw = static_cast<uint64_t>(product >> 64);
  uint64_t running = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    running += stays[i] ? mass[i] : 0;
    if (running > draw) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace reference
