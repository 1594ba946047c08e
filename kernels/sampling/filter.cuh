// The filtered distribution itself.
//
// formula   probabilities: weight / sum of kept weights where kept, else 0; logits: x where kept, else -inf
// grid      a block per row; a warp writes a tile of 1024 words at a time, ties in index order
// smem      RowScratchShared
#pragma once

#include <kernels/ptx/griddep.cuh>
#include <kernels/sampling/sample.cuh>

namespace fulmen {

template <SamplingConfig kC, class T>
FULMEN_DEVICE bool filter_row(RowScratchShared& s, const FilterOpParams& p, int64_t r, const T* x, float* out) {
  const RowFilter f = row_filter(p.filter, r, p.vocab, p.input_is_probs);
  if (agreed(f.bad)) return false;
  const float max = row_max<kC>(x, p.vocab, p.input_is_probs);
  if (agreed(!(max > -infinity() && max < infinity()))) return false;
  const Row<T> row{x, p.vocab, max, f.inverse_temperature, p.input_is_probs};
  const uint64_t most = row.mass(max);
  if (agreed(most == 0)) return false;
  Kept<T> kept{row, 0, 0x7fffffff, 0};
  if (agreed(f.greedy)) {
    kept.key = ordered_key(max);
    kept.ties = 1;
  } else {
    if (agreed(f.top_k > 0 || f.top_p < 1.0f)) {
      uint64_t total = 0;
      const Cut cut = kept_prefix<kC>(s, row, f, false, total);
      kept.key = cut.key;
      kept.ties = cut.ties;
    }
    if (f.min_p > 0.0f) kept.floor = mass_share(f.min_p, most);
  }
  const float scale = reciprocal(mass_value(sum_tiles<kC>(s, kept)));
  const int32_t tiles = ceil_div(p.vocab, kTileWords);
  for (int32_t tile = uniform_warp_index(); tile < tiles; tile += kC.threads / 32) {
    each_of_tile(s, kept, tile, [&](int32_t i, float v, bool chosen, bool inside) {
      if (inside) out[i] = p.output_is_logits ? (chosen ? v : -infinity()) : chosen ? row.weight(v) * scale : 0.0f;
      return true;
    });
  }
  return true;
}

template <SamplingConfig kC>
FULMEN_DEVICE void filter(const FilterOpParams& p) {
  using T = storage_t<kC.dtype>;
  RowScratchShared& s = shared_storage<RowScratchShared>();
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (int64_t r = blockIdx.x; r < p.num_rows; r += gridDim.x) {
    float* out = p.output + r * p.output_stride;
    const bool good = filter_row<kC>(s, p, r, static_cast<const T*>(p.input) + r * p.input_stride, out);
    if (!good) {
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.vocab; i += kC.threads) out[i] = quiet_nan();
    }
    __syncthreads();
  }
}

}  // namespace fulmen
