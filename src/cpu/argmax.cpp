#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/argmax.cpp"
#include <hwy/foreach_target.h>

#include "cpu/scan-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

void ArgmaxRows(const ArgmaxParams& p, int64_t first, int64_t last) {
  WithStorage(p.dtype, [&](auto* type) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    for (int64_t row = first; row < last; ++row) {
      p.index[row] = ArgmaxOf(static_cast<const T*>(p.x) + row * p.x_stride, static_cast<size_t>(p.n));
    }
  });
}

}  // namespace
}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fulmen::cpu {

HWY_EXPORT(ArgmaxRows);

void argmax(const ArgmaxParams& params, const Pool& pool) {
  for_rows(pool, params.num_rows, params.n,
           [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(ArgmaxRows)(params, first, last); });
}

}  // namespace fulmen::cpu
#endif
