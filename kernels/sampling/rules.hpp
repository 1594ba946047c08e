// The rules of sampling that host and device share: what a row's parameters mean, and which random number it
// draws.
//
// Words are ranked by descending value, equal values by ascending index. Top-k and top-p keep a prefix of
// that ranking: top-k the first k words, top-p the fewest words whose mass reaches ceil(p * total). total is
// the mass of all words (joint), or of those that top-k kept (sequential). Min-p keeps words of mass >=
// ceil(min_p * largest mass), which renormalising doesn't change, so it is the same in both orders.
#pragma once

#include <kernels/math/mass.hpp>
#include <kernels/math/random.hpp>
#include <kernels/prelude/prelude.hpp>
#include <kernels/sampling/sampling.params.hpp>

namespace fulmen {

struct RowFilter {
  float inverse_temperature;
  int32_t top_k;  // 0: no such filter
  float top_p;    // 1: no such filter
  float min_p;    // 0: no such filter
  bool joint;
  bool greedy;  // temperature 0: argmax
  bool bad;     // a parameter is NaN or out of range
};

FULMEN_FN RowFilter row_filter(const FilterParams& p, int64_t row, int32_t vocab, bool input_is_probs) {
  const float temperature = p.temperatures != nullptr ? p.temperatures[row] : p.temperature;
  RowFilter f;
  f.top_k = p.top_ks != nullptr ? p.top_ks[row] : p.top_k;
  f.top_p = p.top_ps != nullptr ? p.top_ps[row] : p.top_p;
  f.min_p = p.min_ps != nullptr ? p.min_ps[row] : p.min_p;
  f.joint = p.joint;
  f.greedy = !input_is_probs && temperature == 0.0f;
  f.inverse_temperature = input_is_probs || f.greedy ? 1.0f : inverse_temperature(temperature);
  f.bad = (!input_is_probs && !(temperature >= 0.0f && temperature < infinity())) || !(f.top_p >= 0.0f) ||
          !(f.min_p <= 1.0f);
  if (f.top_k <= 0 || f.top_k >= vocab) f.top_k = 0;
  if (f.top_p > 1.0f) f.top_p = 1.0f;
  if (f.min_p < 0.0f) f.min_p = 0.0f;
  return f;
}

// The draw of row r among words of `mass` in all: the word, in index order, whose running mass first exceeds
// it. With seeds of their own rows don't depend on their place in the batch; with one seed their place tells
// them apart.
FULMEN_FN uint64_t draw_of(const SampleParams& p, int64_t row, uint64_t mass) {
  const uint64_t seed = p.seeds != nullptr ? p.seeds[row] : p.seed;
  const uint64_t offset = p.offsets != nullptr ? p.offsets[row] : p.offset;
  const uint32_t place = p.seeds != nullptr ? 0u : static_cast<uint32_t>(row);
  return mul_high(random_bits(seed, offset, place, 0), mass);
}

}  // namespace fulmen
