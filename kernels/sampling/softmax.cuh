// Softmax with temperature.
//
// formula   probs = exp((x - max) / T) / sum; the sum in fixed point, so that small terms don't vanish beside a large one
// grid      a block per row; three passes, the later two find the row in L2
#pragma once

#include <kernels/ptx/griddep.cuh>
#include <kernels/sampling/row.cuh>

namespace fulmen {

template <SamplingConfig kC>
FULMEN_DEVICE void softmax(const SoftmaxParams& p) {
  using T = storage_t<kC.dtype>;
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  for (int64_t r = blockIdx.x; r < p.num_rows; r += gridDim.x) {
    const T* x = static_cast<const T*>(p.logits) + r * p.logits_stride;
    float* out = p.probs + r * p.probs_stride;
    const float temperature = p.temperatures != nullptr ? p.temperatures[r] : p.temperature;
    const float max = row_max<kC>(x, p.vocab, false);
    const bool good = temperature > 0.0f && temperature < infinity() && max > -infinity() && max < infinity();
    const Row<T> row{x, p.vocab, max, good ? inverse_temperature(temperature) : 1.0f, false};
    const uint64_t total = total_mass<kC>(row);
    const float scale = good ? reciprocal(mass_value(total)) : quiet_nan();
    // Written by the thread that read: probs may be logits.
    each_word<kC>(x, p.vocab, [&](int32_t i, float v) { out[i] = good ? row.weight(v) * scale : quiet_nan(); });
    __syncthreads();
  }
}

}  // namespace fulmen
