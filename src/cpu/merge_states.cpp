#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/merge_states.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>
#include <vector>

#include "cpu/merge_states.hpp"
#include "cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fulmen::HWY_NAMESPACE {

// out = sum_p weight[p] part_p over `dim` elements; all parts are read before out is written, a vector at a time.
template <class T, class D>
HWY_INLINE void MergeVector(D d, const MergeStatesParams& p, int64_t row, int64_t head, const float* weight, int64_t i,
                            T* out) {
  auto sum = hn::Zero(d);
  for (int64_t part = 0; part < p.num_parts; ++part) {
    if (weight[part] == 0.0f) continue;  // an empty part's o may hold anything
    const T* from = static_cast<const T*>(part == 0 ? p.first.o : p.second.o) + merge_offset(p, part, row, head);
    sum = hn::MulAdd(LoadAs(d, from + i), hn::Set(d, weight[part]), sum);
  }
  StoreAs(d, sum, out + i);
}

template <class T>
void MergeRow(const MergeStatesParams& p, int64_t row, int64_t head, float* weight) {
  float top = -infinity();
  for (int64_t part = 0; part < p.num_parts; ++part) {
    const float lse = *merge_lse(p, part, row, head);
    top = lse > top || lse != lse ? lse : top;
    if (top != top) break;
  }
  float sum = 0.0f, lse = -infinity();
  for (int64_t part = 0; part < p.num_parts; ++part) {
    const float x = *merge_lse(p, part, row, head);
    weight[part] = top == -infinity() ? 0.0f : std::exp((x - top) * p.lse_unit);
    sum += weight[part];
  }
  if (top != -infinity()) {
    lse = top + std::log(sum) * p.log_unit;
    for (int64_t part = 0; part < p.num_parts; ++part) weight[part] /= sum;
  }
  T* out = static_cast<T*>(p.o) + row * p.o_stride_row + head * p.o_stride_head;
  const DF d;
  const hn::CappedTag<float, 1> d1;
  const int64_t n = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + n <= p.head_dim; i += n) MergeVector(d, p, row, head, weight, i, out);
  for (; i < p.head_dim; ++i) MergeVector(d1, p, row, head, weight, i, out);
  if (p.lse) p.lse[row * p.lse_stride_row + head * p.lse_stride_head] = lse;
}

void MergeRowAny(const MergeStatesParams& p, int64_t row, int64_t head, float* weight) {
  switch (p.dtype) {
    case DType::f32: return MergeRow<float>(p, row, head, weight);
    case DType::bf16: return MergeRow<bf16>(p, row, head, weight);
    default: return MergeRow<f16>(p, row, head, weight);
  }
}

}  // namespace fulmen::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fulmen {
HWY_EXPORT(MergeRowAny);
namespace cpu {

void merge_states(const MergeStatesParams& p, const Pool& pool) {
  const auto merge_row = HWY_DYNAMIC_DISPATCH(MergeRowAny);
  pool.parallel_for(p.num_rows, [&](int64_t row) {
    thread_local std::vector<float> weight;  // grows once
    weight.resize(static_cast<size_t>(p.num_parts));
    for (int64_t head = 0; head < p.num_heads; ++head) merge_row(p, row, head, weight.data());
  });
}

}  // namespace cpu
}  // namespace fulmen
#endif
