#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/act_and_mul.cpp"
#include <hwy/foreach_target.h>

#include <kernels/math/activation.hpp>

#include "cpu/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

using Constants = ActivationConstants;

// exp for gates: past its range the gate is 0 or 1 anyway, and a NaN comes back through the product with x.
HWY_INLINE FloatVec GateExp(FloatTag d, FloatVec x) {
  using C = ExpConstants;
  return ExpInRange(d, hn::Min(hn::Max(x, hn::Set(d, C::kUnderflow)), hn::Set(d, C::kOverflow)));
}

// The vector forms of kernels/math/activation.hpp.
template <Activation kActivation>
HWY_INLINE FloatVec Activate(FloatTag d, FloatVec x) {
  const auto one = hn::Set(d, 1.0f);
  if constexpr (kActivation == Activation::silu) {
    return hn::Div(x, hn::Add(one, GateExp(d, hn::Neg(x))));
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    const auto cubic = hn::Mul(hn::Mul(x, x), x);
    const auto u =
        hn::Mul(hn::Set(d, -Constants::kGeluScale), Fma(hn::Set(d, Constants::kGeluCubic), cubic, x));
    return hn::Div(x, hn::Add(one, GateExp(d, u)));
  } else {
    const auto t = hn::Min(hn::Abs(x), hn::Set(d, 16.0f));
    auto h = hn::Set(d, Constants::kPhi[7]);
    for (int i = 6; i >= 0; --i) h = Fma(h, t, hn::Set(d, Constants::kPhi[i]));
    const auto tail = hn::Mul(hn::Set(d, 0.5f), GateExp(d, hn::Mul(hn::Neg(t), h)));
    const auto phi = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(one, tail));
    return hn::IfThenElse(hn::IsNaN(x), x, hn::Mul(x, phi));
  }
}

template <Activation kActivation, class T>
HWY_INLINE void Row(const T* x, T* out, size_t width) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const T* gate = x;
  const T* up = x + width;
  size_t i = 0;
  for (; i + lanes <= width; i += lanes) {
    StoreFloats(hn::Mul(Activate<kActivation>(d, LoadFloats(d, gate + i)), LoadFloats(d, up + i)), d,
                out + i);
  }
  if (i < width) {
    const size_t rest = width - i;
    const auto a = Activate<kActivation>(d, LoadTail(d, gate + i, rest, 0.0f));
    StoreTail(hn::Mul(a, LoadTail(d, up + i, rest, 0.0f)), d, out + i, rest);
  }
}

template <Activation kActivation>
HWY_INLINE void Rows(const ActAndMulParams& p, int64_t first, int64_t last) {
  WithStorage(p.dtype, [&](auto* type) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    for (int64_t row = first; row < last; ++row) {
      Row<kActivation>(static_cast<const T*>(p.x) + row * p.x_stride,
                       static_cast<T*>(p.out) + row * p.out_stride, static_cast<size_t>(p.width));
    }
  });
}

void ActAndMulRows(const ActAndMulParams& p, int64_t first, int64_t last) {
  if (p.activation == Activation::silu) return Rows<Activation::silu>(p, first, last);
  if (p.activation == Activation::gelu) return Rows<Activation::gelu>(p, first, last);
  return Rows<Activation::gelu_tanh>(p, first, last);
}

}  // namespace
}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fulmen::cpu {

HWY_EXPORT(ActAndMulRows);

void act_and_mul(const ActAndMulParams& params, const Pool& pool) {
  for_rows(pool, params.num_tokens, params.width,
           [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(ActAndMulRows)(params, first, last); });
}

}  // namespace fulmen::cpu
#endif
