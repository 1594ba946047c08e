#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/top_k.cpp"
#include <hwy/foreach_target.h>

#include "cpu/distribution-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

struct Ranked {
  uint32_t key;
  int32_t index;
};

template <class T>
HWY_INLINE void TopKRow(const TopKParams& p, const T* x, T* values, int32_t* indices, RowScratch& scratch,
                        std::vector<Ranked>& ranked) {
  const auto n = static_cast<size_t>(p.n), k = static_cast<size_t>(p.k);
  scratch.reserve(n);
  const float max = BlockMaxima(x, n, false, scratch.block_max.data(), scratch.lane_max.data());
  if (max != max) {
    const FloatTag d;
    for (size_t i = 0; i < k; ++i) {
      StoreTail(hn::Set(d, quiet_nan()), d, values + i, 1);
      indices[i] = -1;
    }
    return;
  }
  Words& words = scratch.words;
  float threshold = ThresholdOfCount(x, n, max, p.k, scratch);
  if (Collect<T>(x, n, threshold, scratch.block_max.data(), nullptr, words) < k) {
    threshold = -infinity();  // the estimate was too high
    Collect<T>(x, n, threshold, scratch.block_max.data(), nullptr, words);
  }
  Rank(Shape{}, false, words);
  const Cut cut = select_prefix(words.keys.data(), nullptr, words.n, ordered_key(threshold), ordered_key(max),
                                p.k, 0, scratch.select);
  ranked.clear();
  int64_t ties = cut.ties;
  for (size_t i = 0; i < words.n; ++i) {
    if (words.keys[i] < cut.key || (words.keys[i] == cut.key && ties-- <= 0)) continue;
    ranked.push_back({words.keys[i], words.indices[i]});
  }
  std::sort(ranked.begin(), ranked.end(), [](const Ranked& a, const Ranked& b) {
    return a.key != b.key ? a.key > b.key : a.index < b.index;
  });
  for (size_t i = 0; i < k; ++i) {
    values[i] = x[ranked[i].index];
    indices[i] = ranked[i].index;
  }
}

void TopKRows(const TopKParams& p, int64_t first, int64_t last) {
  RowScratch& scratch = RowScratch::of_thread();
  std::vector<Ranked> ranked;
  ranked.reserve(static_cast<size_t>(p.k));
  WithStorage(p.dtype, [&](auto* type) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    for (int64_t row = first; row < last; ++row) {
      TopKRow(p, static_cast<const T*>(p.x) + row * p.x_stride,
              static_cast<T*>(p.values) + row * p.values_stride, p.indices + row * p.indices_stride, scratch,
              ranked);
    }
  });
}

}  // namespace
}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fulmen::cpu {

HWY_EXPORT(TopKRows);

void top_k(const TopKParams& params, const Pool& pool) {
  for_rows(pool, params.num_rows, params.n,
           [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(TopKRows)(params, first, last); });
}

}  // namespace fulmen::cpu
#endif
