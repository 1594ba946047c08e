// The filtered distribution itself.
//
// formula   probabilities: weight / sum of kept weights where kept, else 0; logits: x where kept, else -inf
// grid      a cluster per row
// passes    fetch and maximum | bracket, rounds, finish (select.cuh; rows with top-k or top-p) | kept mass and ties by warp | write
// smem      RowShared, then the block's part of the row
#pragma once

#include <kernels/ptx/griddep.cuh>
#include <kernels/sampling/prefix.cuh>

namespace fulmen {

// A lane's words of the output; 16 bytes at a time where the row's address allows.
template <int kN>
FULMEN_DEVICE void write_words(float* out, int32_t first, int32_t n, bool wide, const float (&f)[kN]) {
  if (kN >= 4 && wide && first + kN <= n) {
#pragma unroll
    for (int k = 0; k + 3 < kN; k += 4) {
      ptx::store_streaming_16(out + first + k, {float_bits(f[k]), float_bits(f[k + 1]), float_bits(f[k + 2]), float_bits(f[k + 3])});
    }
  } else {
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      if (first + k < n) out[first + k] = f[k];
    }
  }
}

template <SamplingConfig kC>
FULMEN_DEVICE void fill_row(const Row<kC>& row, float* out, float value) {
  for (int32_t i = row.block().begin * kC.vector() + static_cast<int32_t>(threadIdx.x); i < min(row.block().end * kC.vector(), row.n); i += kC.threads) {
    out[i] = value;
  }
}

template <SamplingConfig kC>
FULMEN_DEVICE bool filter_row(Row<kC>& row, const FilterOpParams& p, int64_t r, float* out) {
  constexpr int kN = kC.vector(), kPerLane = Row<kC>::kPerLane;
  const RowFilter f = row_filter(p.filter, r, p.vocab, p.input_is_probs);
  float lane_max, lowest;
  const float top = row.largest(p.input_is_probs, lane_max, lowest);
  const Shape shape{top, f.inverse_temperature, p.input_is_probs};
  if (f.bad || !(top > -infinity() && top < infinity()) || shape.mass(top) == 0) return false;
  uint64_t mass = 0;
  Kept kept{top, 1, 0.0f};
  if (!f.greedy) {
    const Prefix prefix = kept_by(row, shape, f, lane_max, lowest, false, true, false, [](uint64_t) { return uint64_t{0}; });
    kept = prefix.kept;
    if (prefix.listed > 0) {
      rank_list(row, shape, prefix.listed, true);
      Cut cut;
      listed_prefix(row.s, f, prefix, cut);
      kept.cut = key_value(cut.key);
      kept.ties = cut.ties;
    }
  }
  const KeptSum sum = sum_kept(row, row.own(), shape, kept);
  const auto slots = row.exchange({sum.above, 0, sum.equal, 0});
  find_slot<kPerLane>(slots, shape, kept, mass, [](uint64_t) { return uint64_t{0}; });
  uint32_t before = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (static_cast<uint32_t>(lane_index() * kPerLane + i) < row.slot()) before += slots.of[i].c;
  }
  before = static_cast<uint32_t>(warp_reduce(static_cast<int32_t>(before), Sum{}));
  const float scale = reciprocal(mass_value(mass)), outside = p.output_is_logits ? -infinity() : 0.0f;
  const bool wide = reinterpret_cast<uintptr_t>(out) % 16 == 0;
  row.each_together(row.own(), [&](int32_t first, const float(&x)[kN]) {
    const uint32_t words = kept_words(shape, kept, x, before);
    float y[kN];
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      y[k] = (words >> k & 1u) == 0 ? outside : p.output_is_logits ? x[k] : shape.probability(x[k]) * scale;
    }
    if (first < row.own().end * kN) write_words(out, first, p.vocab, wide, y);
    return true;
  });
  return true;
}

template <SamplingConfig kC>
FULMEN_DEVICE void filter(const FilterOpParams& p) {
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  const int64_t r = blockIdx.x / kC.cluster;
  float* out = p.output + r * p.output_stride;
  Row<kC> row(static_cast<const storage_t<kC.dtype>*>(p.input) + r * p.input_stride, p.vocab);
  row.fetch();
  if (!filter_row(row, p, r, out)) fill_row(row, out, quiet_nan());
}

}  // namespace fulmen
