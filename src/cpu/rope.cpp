#include "cpu/ops.hpp"
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rope.cpp"
#include <hwy/foreach_target.h>

#include <kernels/math/rotation.hpp>

#include "cpu/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::cpu::HWY_NAMESPACE {
namespace {

// cos and sin of one token's pairs, used by all of its heads. Room for a vector past the last pair.
struct Table {
  HWY_ALIGN float cos[kMaxRotaryPairs + HWY_MAX_BYTES / sizeof(float)];
  HWY_ALIGN float sin[kMaxRotaryPairs + HWY_MAX_BYTES / sizeof(float)];
};

// The vector form of rotation_of.
HWY_INLINE void Rotations(const uint32_t* turns, float scale, float* cos, float* sin, size_t n) {
  using C = RotationConstants;
  const FloatTag d;
  const hn::RebindToUnsigned<FloatTag> d32;
  const hn::RebindToSigned<FloatTag> di32;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto turn = hn::LoadU(d32, turns + i);
    const auto quarter = hn::ShiftRight<30>(hn::Add(turn, hn::Set(d32, 0x20000000u)));
    const auto rest = hn::BitCast(di32, hn::Sub(turn, hn::ShiftLeft<30>(quarter)));
    const auto x = hn::Mul(hn::ConvertTo(d, rest), hn::Set(d, C::kTurn));
    const auto z = hn::Mul(x, x);
    auto s = Fma(hn::Set(d, C::kS3), z, hn::Set(d, C::kS2));
    s = Fma(s, z, hn::Set(d, C::kS1));
    s = hn::Mul(Fma(s, z, hn::Set(d, C::kS0)), x);
    auto c = Fma(hn::Set(d, C::kC4), z, hn::Set(d, C::kC3));
    c = Fma(c, z, hn::Set(d, C::kC2));
    c = Fma(c, z, hn::Set(d, C::kC1));
    c = Fma(c, z, hn::Set(d, 1.0f));
    const auto one = hn::Set(d32, 1), two = hn::Set(d32, 2);
    const auto swap = hn::RebindMask(d, hn::Eq(hn::And(quarter, one), one));
    // The sign bit is bit 1 of the quarter (sine) or of the quarter + 1 (cosine).
    const auto cos_sign = hn::BitCast(d, hn::ShiftLeft<30>(hn::And(hn::Add(quarter, one), two)));
    const auto sin_sign = hn::BitCast(d, hn::ShiftLeft<30>(hn::And(quarter, two)));
    const auto factor = hn::Set(d, scale);
    hn::StoreU(hn::Mul(factor, hn::Xor(hn::IfThenElse(swap, s, c), cos_sign)), d, cos + i);
    hn::StoreU(hn::Mul(factor, hn::Xor(hn::IfThenElse(swap, c, s), sin_sign)), d, sin + i);
  }
}

HWY_INLINE void FillTable(const RopeParams& p, int64_t position, Table& table) {
  const auto pairs = static_cast<size_t>(p.rotary_dim / 2);
  if (position < 0 || position >= p.max_position) {
    for (size_t i = 0; i < pairs; ++i) table.cos[i] = table.sin[i] = quiet_nan();
  } else if (p.cos_sin != nullptr) {
    const float* row = p.cos_sin + position * p.cos_sin_stride;
    for (size_t i = 0; i < pairs; ++i) table.cos[i] = row[i];
    for (size_t i = 0; i < pairs; ++i) table.sin[i] = row[pairs + i];
  } else {
    uint32_t turns[kMaxRotaryPairs + HWY_MAX_BYTES / sizeof(float)] = {};
    for (size_t i = 0; i < pairs; ++i)
      turns[i] = turn_of(static_cast<int32_t>(position), p.frequencies.step[i]);
    Rotations(turns, p.frequencies.scale, table.cos, table.sin, pairs);
  }
}

// (a, b) turned: (a cos - b sin, b cos + a sin).
HWY_INLINE void Turn(FloatVec& a, FloatVec& b, FloatVec cos, FloatVec sin) {
  const auto old_a = a;
  a = Fma(a, cos, hn::Neg(hn::Mul(b, sin)));
  b = Fma(b, cos, hn::Mul(old_a, sin));
}

// Pairs (i, i + pairs). `in` may be `out`.
template <class T>
HWY_INLINE void RotateHalves(const T* in, const Table& table, T* out, size_t pairs) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + kGroup * lanes <= pairs; i += kGroup * lanes) {
    const Group cos = LoadGroupLike<T>(d, table.cos + i), sin = LoadGroupLike<T>(d, table.sin + i);
    Group a = LoadGroup(d, in + i), b = LoadGroup(d, in + pairs + i);
    FULMEN_EACH(j, kGroup) Turn(a.v[j], b.v[j], cos.v[j], sin.v[j]);
    StoreGroup<false>(a, d, out + i);
    StoreGroup<false>(b, d, out + pairs + i);
  }
  for (; i < pairs; i += lanes) {
    const size_t n = pairs - i < lanes ? pairs - i : lanes;
    auto a = LoadTail(d, in + i, n, 0.0f), b = LoadTail(d, in + pairs + i, n, 0.0f);
    Turn(a, b, hn::LoadU(d, table.cos + i), hn::LoadU(d, table.sin + i));
    StoreTail(a, d, out + i, n);
    StoreTail(b, d, out + pairs + i, n);
  }
}

// Pairs (2 i, 2 i + 1), bf16: a group has them apart.
HWY_INLINE void RotateNeighbours(const bf16* in, const Table& table, bf16* out, size_t pairs) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + 2 * lanes <= pairs; i += 2 * lanes) {
    Group g = LoadGroup(d, in + 2 * i);
    Turn(g.v[0], g.v[1], hn::LoadU(d, table.cos + i), hn::LoadU(d, table.sin + i));
    Turn(g.v[2], g.v[3], hn::LoadU(d, table.cos + i + lanes), hn::LoadU(d, table.sin + i + lanes));
    StoreGroup<false>(g, d, out + 2 * i);
  }
  for (; i < pairs; ++i) {
    auto a = LoadTail(d, in + 2 * i, 1, 0.0f), b = LoadTail(d, in + 2 * i + 1, 1, 0.0f);
    Turn(a, b, hn::Set(d, table.cos[i]), hn::Set(d, table.sin[i]));
    StoreTail(a, d, out + 2 * i, 1);
    StoreTail(b, d, out + 2 * i + 1, 1);
  }
}

// fp32 and fp16: two vectors are taken apart through a buffer.
template <class T>
HWY_INLINE void RotateNeighbours(const T* in, const Table& table, T* out, size_t pairs) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  HWY_ALIGN float buffer[2 * HWY_MAX_BYTES / sizeof(float)];
  for (size_t i = 0; i < pairs; i += lanes) {
    const size_t n = 2 * (pairs - i < lanes ? pairs - i : lanes);
    const size_t low = n < lanes ? n : lanes, high = n - low;
    const T* from = in + 2 * i;
    T* to = out + 2 * i;
    const bool whole = n == 2 * lanes;
    hn::Store(whole ? LoadFloats(d, from) : LoadTail(d, from, low, 0.0f), d, buffer);
    hn::Store(whole ? LoadFloats(d, from + lanes) : LoadTail(d, from + low, high, 0.0f), d, buffer + lanes);
    FloatVec a, b;
    hn::LoadInterleaved2(d, buffer, a, b);
    Turn(a, b, hn::LoadU(d, table.cos + i), hn::LoadU(d, table.sin + i));
    hn::StoreInterleaved2(a, b, d, buffer);
    if (whole) {
      StoreFloats(hn::Load(d, buffer), d, to);
      StoreFloats(hn::Load(d, buffer + lanes), d, to + lanes);
    } else {
      StoreTail(hn::Load(d, buffer), d, to, low);
      StoreTail(hn::Load(d, buffer + lanes), d, to + low, high);
    }
  }
}

template <class T>
HWY_INLINE void Head(const RopeParams& p, const T* in, const Table& table, bool bad, T* out) {
  const auto pairs = static_cast<size_t>(p.rotary_dim / 2);
  if (p.interleaved) {
    RotateNeighbours(in, table, out, pairs);
  } else {
    RotateHalves(in, table, out, pairs);
  }
  const auto rest = static_cast<size_t>(p.head_dim - p.rotary_dim);
  if (bad) {
    const FloatTag d;
    for (size_t i = 0; i < rest; ++i) StoreTail(hn::Set(d, quiet_nan()), d, out + p.rotary_dim + i, 1);
  } else if (in != out) {
    __builtin_memcpy(out + p.rotary_dim, in + p.rotary_dim, rest * sizeof(T));
  }
}

// The token's table and its queries; returns whether its position is out of range.
template <class T>
bool RotateQueries(const RopeParams& p, int64_t token, Table& table) {
  const int64_t position = p.positions_are_i64 ? static_cast<const int64_t*>(p.positions)[token]
                                               : static_cast<const int32_t*>(p.positions)[token];
  const bool bad = position < 0 || position >= p.max_position;
  FillTable(p, position, table);
  for (int head = 0; head < p.num_q_heads; ++head) {
    Head(p, static_cast<const T*>(p.q) + token * p.q_stride_token + head * p.q_stride_head, table, bad,
         static_cast<T*>(p.q_out) + token * p.q_out_stride_token + head * p.q_out_stride_head);
  }
  return bad;
}

void RopeTokens(const RopeParams& p, int64_t first, int64_t last) {
  WithStorage(p.dtype, [&](auto* type) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    Table table;
    for (int64_t token = first; token < last; ++token) {
      const bool bad = RotateQueries<T>(p, token, table);
      for (int head = 0; p.k != nullptr && head < p.num_k_heads; ++head) {
        Head(p, static_cast<const T*>(p.k) + token * p.k_stride_token + head * p.k_stride_head, table, bad,
             static_cast<T*>(p.k_out) + token * p.k_out_stride_token + head * p.k_out_stride_head);
      }
    }
  });
}

// Keys and values of each token go into the cache.
void RopeAppendTokens(const RopeAppendParams& params, int64_t first, int64_t last) {
  const RopeParams& p = params.rope;
  const AppendKvParams& a = params.append;
  WithStorage(p.dtype, [&](auto* type) HWY_ATTR {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const auto row = [](const KvStorage& cache, int64_t page, int64_t token) {
      return static_cast<T*>(const_cast<void*>(cache.data)) + page * cache.stride_page + token * cache.stride_token;
    };
    Table table;
    for (int64_t token = first; token < last; ++token) {
      const bool bad = RotateQueries<T>(p, token, table);
      const int64_t slot = append_slot(a, token);
      if (slot < 0) continue;
      const int64_t page = slot / a.page_size, offset = slot - page * a.page_size;
      for (int head = 0; head < p.num_k_heads; ++head) {
        Head(p, static_cast<const T*>(p.k) + token * p.k_stride_token + head * p.k_stride_head, table, bad,
             row(a.k_cache, page, offset) + head * a.k_cache.stride_head);
        __builtin_memcpy(row(a.v_cache, page, offset) + head * a.v_cache.stride_head,
                         static_cast<const T*>(a.v) + token * a.v_stride_token + head * a.v_stride_head,
                         static_cast<size_t>(a.head_dim_vo) * sizeof(T));
      }
    }
  });
}

}  // namespace
}  // namespace fulmen::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fulmen::cpu {

HWY_EXPORT(RopeTokens);
HWY_EXPORT(RopeAppendTokens);

void rope(const RopeParams& params, const Pool& pool) {
  const int64_t per_token = static_cast<int64_t>(params.head_dim) * (params.num_q_heads + params.num_k_heads);
  for_rows(pool, params.num_tokens, per_token,
           [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(RopeTokens)(params, first, last); });
}

void rope_append(const RopeAppendParams& params, const Pool& pool) {
  const RopeParams& rope = params.rope;
  const int64_t per_token = static_cast<int64_t>(rope.head_dim) * (rope.num_q_heads + 2 * rope.num_k_heads);
  for_rows(pool, rope.num_tokens, per_token,
           [&](int64_t first, int64_t last) { HWY_DYNAMIC_DISPATCH(RopeAppendTokens)(params, first, last); });
}

}  // namespace fulmen::cpu
#endif
