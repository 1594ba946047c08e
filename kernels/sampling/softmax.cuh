// Softmax with temperature.
//
// formula   probs = exp((x - max) / T) / sum; the sum in fixed point, so that small terms don't vanish beside a large one
// grid      a cluster per row
// passes    fetch and maximum | mass | write
// smem      RowShared, then the block's part of the row
#pragma once

#include <kernels/ptx/griddep.cuh>
#include <kernels/sampling/filter.cuh>

namespace fulmen {

template <SamplingConfig kC>
FULMEN_DEVICE void softmax(const SoftmaxParams& p) {
  constexpr int kN = kC.group();
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  const int64_t r = blockIdx.x / kC.cluster;
  float* out = p.probs + r * p.probs_stride;
  Row<kC> row(static_cast<const storage_t<kC.dtype>*>(p.logits) + r * p.logits_stride, p.vocab);
  row.fetch();
  const float temperature = p.temperatures != nullptr ? p.temperatures[r] : p.temperature;
  float lane_max, lowest;
  const float top = row.largest(false, lane_max, lowest);
  if (temperature > 0.0f && temperature < infinity() && top > -infinity() && top < infinity()) {
    const Shape shape{top, inverse_temperature(temperature), false};
    const float scale = reciprocal(mass_value(total_mass(row, shape)));
    const bool wide = reinterpret_cast<uintptr_t>(out) % 16 == 0;
    // Written by the thread that read: probs may be logits.
    row.each(row.own(), [&](const int32_t(&at)[kN], const float(&x)[kN]) {
      float y[kN];
#pragma unroll
      for (int k = 0; k < kN; ++k) y[k] = shape.probability(x[k]) * scale;
      write_words(out, at[0], p.vocab, wide, y);
    });
  } else {
    fill_row(row, out, quiet_nan());
  }
}

}  // namespace fulmen
