// Conversions between float and the storage types, the same bits on every back end (formats.hpp says which).
#pragma once

#include <kernels/prelude/prelude.hpp>
#include <kernels/ptx/cvt.cuh>

namespace fulmen {

FULMEN_FN float to_float(float x) { return x; }
FULMEN_FN float to_float(bf16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }
FULMEN_FN float to_float(f16 x) { return ptx::cvt_f16_to_f32(x.bits); }
FULMEN_FN float to_float(f8_e4m3 x) { return ptx::cvt_e4m3_to_f32(x.bits); }
FULMEN_FN float to_float(f8_e5m2 x) { return ptx::cvt_f16_to_f32(static_cast<uint16_t>(x.bits << 8)); }  // f16's upper half

template <class T> FULMEN_FN T from_float(float x);
template <> FULMEN_FN float from_float<float>(float x) { return x; }
template <> FULMEN_FN bf16 from_float<bf16>(float x) { return {ptx::cvt_bf16(x)}; }
template <> FULMEN_FN f16 from_float<f16>(float x) { return {ptx::cvt_f16(x)}; }
template <> FULMEN_FN f8_e4m3 from_float<f8_e4m3>(float x) { return {ptx::cvt_e4m3(x)}; }
template <> FULMEN_FN f8_e5m2 from_float<f8_e5m2>(float x) { return {ptx::cvt_e5m2(x)}; }

// Two neighbours in one register, as the matrix instructions take them: `low` is the element of the lower index.
template <class T> FULMEN_FN uint32_t pack2(float low, float high);
template <> FULMEN_FN uint32_t pack2<bf16>(float low, float high) { return ptx::cvt_bf16x2(low, high); }
template <> FULMEN_FN uint32_t pack2<f16>(float low, float high) { return ptx::cvt_f16x2(low, high); }

// Both halves of such a register.
template <class T> FULMEN_FN float low_float(uint32_t pair);
template <class T> FULMEN_FN float high_float(uint32_t pair);
template <> FULMEN_FN float low_float<bf16>(uint32_t pair) { return bits_float(pair << 16); }
template <> FULMEN_FN float high_float<bf16>(uint32_t pair) { return bits_float(pair & 0xffff0000u); }
template <> FULMEN_FN float low_float<f16>(uint32_t pair) { return ptx::cvt_f16_to_f32(static_cast<uint16_t>(pair)); }
template <> FULMEN_FN float high_float<f16>(uint32_t pair) { return ptx::cvt_f16_to_f32(static_cast<uint16_t>(pair >> 16)); }

}  // namespace fulmen
