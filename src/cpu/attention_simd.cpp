// The fp32 engine of attention and what both engines share, once per SIMD target.
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention_simd.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>
#include <cstring>

#include "cpu/attention_engine.hpp"
#include "cpu/simd_math-inl.h"
#include "kernels/math/rotation.hpp"

HWY_BEFORE_NAMESPACE();
namespace fulmen::HWY_NAMESPACE {

#include "kernels/variants/at.hpp"
#include "kernels/variants/alibi.hpp"
#include "kernels/variants/custom_mask.hpp"
#include "kernels/variants/rope.hpp"
#include "kernels/variants/sinks.hpp"
#include "kernels/variants/soft_cap.hpp"

using namespace fulmen::cpu;

constexpr float kLog2e = 1.4426950408889634f;
constexpr int kGroup = 6;  // rows of the register tile: 6 x 64 scores fill 24 of AVX-512's 32 registers
HWY_INLINE size_t Lanes() { return hn::Lanes(DF()); }

// ------------------------------------------------------------------------------------------------ matrix product
// c[r, n] = alpha[r] c[r, n] + sum_k a[r, k] b[k, n], k in order; alpha = null: from zero.
template <int R, int NV>
HWY_INLINE void Product(const float* HWY_RESTRICT a, size_t lda, const float* HWY_RESTRICT b, size_t ldb,
                        float* HWY_RESTRICT c, size_t ldc, int depth, const float* alpha) {
  const DF d;
  const size_t n = hn::Lanes(d);
  VF acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      acc[r][v] = alpha ? hn::Mul(hn::LoadU(d, c + r * ldc + v * n), hn::Set(d, alpha[r])) : hn::Zero(d);
    }
  }
  for (int k = 0; k < depth; ++k) {
    VF row[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) row[v] = hn::LoadU(d, b + k * ldb + v * n);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const VF x = hn::Set(d, a[r * lda + k]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = hn::MulAdd(x, row[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) hn::StoreU(acc[r][v], d, c + r * ldc + v * n);
  }
}

// All columns of some rows; width is a multiple of 16.
template <int R>
HWY_NOINLINE void ProductRows(const float* a, size_t lda, const float* b, size_t ldb, float* c, size_t ldc, int width,
                              int depth, const float* alpha) {
  const int n = static_cast<int>(Lanes());
  int col = 0;
#if HWY_TARGET == HWY_AVX3
  for (; col + 4 * n <= width; col += 4 * n) Product<R, 4>(a, lda, b + col, ldb, c + col, ldc, depth, alpha);
#endif
  for (; col + 2 * n <= width; col += 2 * n) Product<R, 2>(a, lda, b + col, ldb, c + col, ldc, depth, alpha);
  for (; col + n <= width; col += n) Product<R, 1>(a, lda, b + col, ldb, c + col, ldc, depth, alpha);
}

void ProductDispatch(int rows, const float* a, size_t lda, const float* b, size_t ldb, float* c, size_t ldc, int width,
                     int depth, const float* alpha) {
  switch (rows) {
    case 1: return ProductRows<1>(a, lda, b, ldb, c, ldc, width, depth, alpha);
    case 2: return ProductRows<2>(a, lda, b, ldb, c, ldc, width, depth, alpha);
    case 3: return ProductRows<3>(a, lda, b, ldb, c, ldc, width, depth, alpha);
    case 4: return ProductRows<4>(a, lda, b, ldb, c, ldc, width, depth, alpha);
    case 5: return ProductRows<5>(a, lda, b, ldb, c, ldc, width, depth, alpha);
    default: return ProductRows<6>(a, lda, b, ldb, c, ldc, width, depth, alpha);
  }
}

// ------------------------------------------------------------------------------------------------ packing

// A row as fp32, `dim` a multiple of 8; out is padded with zeros to a multiple of 16.
template <class T>
HWY_INLINE void LoadRow(const T* in, int dim, float* out) {
  const DF d;
  const hn::CappedTag<float, 8> d8;
  const int n = static_cast<int>(hn::Lanes(d)), n8 = static_cast<int>(hn::Lanes(d8));
  int i = 0;
  for (; i + n <= dim; i += n) hn::StoreU(LoadAs(d, in + i), d, out + i);
  for (; i < dim; i += n8) hn::StoreU(LoadAs(d8, in + i), d8, out + i);
  for (; i < round_up(dim, 16); i += n8) hn::StoreU(hn::Zero(d8), d8, out + i);
}

HWY_INLINE void RotateRow(const AttentionParams& p, int32_t position, float* row) {
  const bool interleaved = p.rope_interleaved != 0;
  for (int32_t i = 0; i < p.rotary_dim / 2; ++i) {
    const Rotation turn = rotation_of(turn_of(position, p.rope_step[i]));
    Rope::rotate(row[Rope::first_dim(i, p.rotary_dim, interleaved)],
                 row[Rope::second_dim(i, p.rotary_dim, interleaved)], turn.cos * p.rope_scale,
                 turn.sin * p.rope_scale);
  }
}

template <class T>
void LoadQ(TileWork& work) {
  const AttentionParams& p = *work.params;
  float* q = static_cast<float*>(work.q);
  work.q_row_bytes = work.qk_pad * static_cast<int64_t>(sizeof(float));
  for (int r = 0; r < work.num_rows; ++r, q += work.qk_pad) {
    LoadRow(static_cast<const T*>(work.rows[r].q), work.qk_dim, q);
    if (p.features & kRope) RotateRow(p, work.rows[r].position, q);
  }
}

// The share of the next block that belongs to a row of this one's K or V.
HWY_INLINE void FetchShare(KeyBlock& block, int bytes) {
  for (int i = 0; i < bytes; i += 128) block.next.line_pair();
}

// x: Lanes() rows of Lanes() floats, turned in registers.
HWY_INLINE void Transpose(VF* x) {
#if HWY_TARGET != HWY_SCALAR
  const DF d;
  const hn::Repartition<double, DF> dd;
  const size_t n = hn::Lanes(d);
#pragma GCC unroll 4
  for (size_t i = 0; i < n; i += 4) {
    const VF a = hn::InterleaveLower(d, x[i], x[i + 1]), b = hn::InterleaveUpper(d, x[i], x[i + 1]);
    const VF c = hn::InterleaveLower(d, x[i + 2], x[i + 3]), e = hn::InterleaveUpper(d, x[i + 2], x[i + 3]);
    const auto ad = hn::BitCast(dd, a), bd = hn::BitCast(dd, b), cd = hn::BitCast(dd, c), ed = hn::BitCast(dd, e);
    x[i] = hn::BitCast(d, hn::InterleaveLower(dd, ad, cd));
    x[i + 1] = hn::BitCast(d, hn::InterleaveUpper(dd, ad, cd));
    x[i + 2] = hn::BitCast(d, hn::InterleaveLower(dd, bd, ed));
    x[i + 3] = hn::BitCast(d, hn::InterleaveUpper(dd, bd, ed));
  }
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  // Each 128-bit block is turned within itself; now blocks are exchanged, neighbours first, then halves.
#pragma GCC unroll 16
  for (size_t i = 0; i < n; ++i) {
    if (i & 4) continue;
    const VF a = x[i], b = x[i + 4];
    x[i] = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(b), a);
    x[i + 4] = hn::OddEvenBlocks(b, hn::SwapAdjacentBlocks(a));
  }
#endif
#if HWY_TARGET == HWY_AVX3
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) {
    const VF a = x[i], b = x[i + 8];
    x[i] = hn::ConcatLowerLower(d, b, a);
    x[i + 8] = hn::ConcatUpperUpper(d, b, a);
  }
#endif
#else
  (void)x;
#endif
}

#if HWY_TARGET == HWY_AVX3
constexpr int kMaxLanes = 16;
#elif HWY_TARGET == HWY_AVX2
constexpr int kMaxLanes = 8;
#elif HWY_TARGET == HWY_SCALAR
constexpr int kMaxLanes = 1;
#else
constexpr int kMaxLanes = 4;
#endif

// Keys key0 .. key0 + Lanes() - 1, dims in order: kt[dim, key].
template <class T>
HWY_INLINE void PackKeys(const T* const* rows, int dim, float* kt) {
  const DF d;
  constexpr int n = kMaxLanes;
  VF x[n];
  int d0 = 0;
  for (; d0 + n <= dim; d0 += n) {
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) x[i] = LoadAs(d, rows[i] + d0);
    Transpose(x);
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) hn::StoreU(x[i], d, kt + (d0 + i) * kBlock);
  }
#if HWY_TARGET == HWY_AVX3
  if (d0 < dim) {  // 8 dims are left
    const hn::CappedTag<float, 8> d8;
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) x[i] = hn::ZeroExtendVector(d, LoadAs(d8, rows[i] + d0));
    Transpose(x);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) hn::StoreU(x[i], d, kt + (d0 + i) * kBlock);
  }
#endif
}

template <class T>
HWY_INLINE void PackK(TileWork& work, KeyBlock& block) {
  const AttentionParams& p = *work.params;
  float* kt = static_cast<float*>(work.k);
  constexpr int n = kMaxLanes;
  const int bytes = work.qk_dim * static_cast<int>(sizeof(T));
  for (int key0 = 0; key0 < block.count; key0 += n) {
    const T* rows[n];
    for (int i = 0; i < n; ++i) {
      rows[i] = static_cast<const T*>(block.k[key0 + i]);
      FetchShare(block, bytes);
    }
    if (p.features & kRope) {
      float turned[n][kMaxHeadDim];
      const float* turned_rows[n];
      for (int i = 0; i < n; ++i) {
        LoadRow(rows[i], work.qk_dim, turned[i]);
        RotateRow(p, block.base + key0 + i, turned[i]);
        turned_rows[i] = turned[i];
      }
      PackKeys(turned_rows, work.qk_dim, kt + key0);
    } else {
      PackKeys(rows, work.qk_dim, kt + key0);
    }
  }
}

// Values in rows of vo_pad; true if all are finite.
template <class T>
HWY_INLINE bool PackV(TileWork& work, KeyBlock& block) {
  const DF d;
  const DI di;
  const hn::CappedTag<float, 8> d8;
  const hn::RebindToSigned<decltype(d8)> di8;
  const int n = static_cast<int>(hn::Lanes(d)), n8 = static_cast<int>(hn::Lanes(d8));
  VI top = hn::Zero(di);
  auto top8 = hn::Zero(di8);
  const auto magnitude = hn::Set(di, 0x7fffffff);
  const auto magnitude8 = hn::Set(di8, 0x7fffffff);
  const int bytes = work.vo_dim * static_cast<int>(sizeof(T));
  for (int key = 0; key < block.count; ++key) {
    const T* in = static_cast<const T*>(block.v[key]);
    FetchShare(block, bytes);
    float* out = work.v + static_cast<size_t>(key) * work.vo_pad;
    int i = 0;
    for (; i + n <= work.vo_dim; i += n) {
      const VF x = LoadAs(d, in + i);
      top = hn::Max(top, hn::And(hn::BitCast(di, x), magnitude));
      hn::StoreU(x, d, out + i);
    }
    for (; i < work.vo_dim; i += n8) {
      const auto x = LoadAs(d8, in + i);
      top8 = hn::Max(top8, hn::And(hn::BitCast(di8, x), magnitude8));
      hn::StoreU(x, d8, out + i);
    }
    for (; i < work.vo_pad; i += n8) hn::StoreU(hn::Zero(d8), d8, out + i);
  }
  return hn::AllTrue(di, hn::Lt(top, hn::Set(di, 0x7f800000))) &&
         hn::AllTrue(di8, hn::Lt(top8, hn::Set(di8, 0x7f800000)));
}

// ------------------------------------------------------------------------------------------------ the steps

// Rows r .. r + count - 1 see something of the block?
HWY_INLINE uint64_t AnyVisible(const TileWork& work, int r, int count) {
  uint64_t any = 0;
  for (int i = 0; i < count; ++i) any |= work.visible[r + i];
  return any;
}

template <class T>
void Scores(TileWork& work, KeyBlock& block) {
  PackK<T>(work, block);
  const float* q = static_cast<const float*>(work.q);
  const int width = round_up(block.count, 16);
  for (int r = 0; r < work.num_rows; r += kGroup) {
    const int rows = min(kGroup, work.num_rows - r);
    if (!AnyVisible(work, r, rows)) continue;
    ProductDispatch(rows, q + static_cast<size_t>(r) * work.qk_pad, work.qk_pad, static_cast<const float*>(work.k),
                    kBlock, work.s + static_cast<size_t>(r) * kBlock, kBlock, width, work.qk_dim, nullptr);
  }
}

// Logits of a row in units of log2 (without softmax: plain logits).
HWY_INLINE VF Logit(const AttentionParams& p, const TileRow& row, VF score, int32_t key) {
  Vec s = hn::Mul(score, hn::Set(DF(), p.sm_scale));
  const int32_t first = key - row.position;
  const At<Vec> at{Vec(hn::ConvertTo(DF(), hn::Iota(DI(), first))), row.qo_head};
  if (p.features & kSoftCap) {
    s = SoftCap::logit(SoftCap::Params{p.logits_soft_cap, 1.0f / p.logits_soft_cap}, at, s);
  }
  if (p.features & kAlibi) s = Alibi::logit(Alibi::Params{p.alibi_slopes}, at, s);
  return p.features & kNoSoftmax ? s.v : hn::Mul(s.v, hn::Set(DF(), kLog2e));
}

template <bool kPlain>
HWY_INLINE void RowWeights(TileWork& work, KeyBlock& block, State& state, int r, bool fresh) {
  const DF d;
  constexpr int n = kMaxLanes, kVectors = kBlock / n;
  const AttentionParams& p = *work.params;
  const uint64_t visible = work.visible[r];
  float* s = work.s + static_cast<size_t>(r) * kBlock;
  float* l = work.l + static_cast<size_t>(r) * kBlock;
  VF x[kVectors];
  if (kPlain) {
    const VF scale = hn::Set(d, work.scale_log2);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) x[v] = hn::Mul(hn::LoadU(d, s + v * n), scale);
  } else {
#pragma GCC unroll 1
    for (int v = 0; v < kVectors; ++v) x[v] = Logit(p, work.rows[r], hn::LoadU(d, s + v * n), block.base + v * n);
  }
  const bool softmax = kPlain || !(p.features & kNoSoftmax);
  const VF hidden = hn::Set(d, softmax ? -infinity() : 0.0f);
  if (visible != ~uint64_t{0}) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const uint64_t bits = visible >> (v * n);
      uint8_t bytes[8];
      std::memcpy(bytes, &bits, 8);
      x[v] = hn::IfThenElse(hn::LoadMaskBits(d, bytes), x[v], hidden);
    }
  }
  if (!softmax) {
    work.alpha[r] = 1.0f;
    state.m[r] = 0.0f;
    for (int v = 0; v < kVectors; ++v) hn::StoreU(x[v], d, s + v * n);
    if (fresh) std::memset(l, 0, kBlock * sizeof(float));
    return;
  }
  VF top = x[0];
#pragma GCC unroll 8
  for (int v = 1; v < kVectors; ++v) top = hn::Max(top, x[v]);
  const float before = fresh ? -infinity() : state.m[r];
  const float block_top = hn::GetLane(hn::MaxOfLanes(d, top));
  const float m = before < block_top ? block_top : before;
  const VF base = hn::Set(d, m == -infinity() ? 0.0f : m);
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) x[v] = Exp2(hn::Sub(x[v], base));
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) hn::StoreU(x[v], d, s + v * n);
  float alpha = 1.0f;
  if (fresh) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) hn::StoreU(x[v], d, l + v * n);
  } else if (m == before) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) hn::StoreU(hn::Add(hn::LoadU(d, l + v * n), x[v]), d, l + v * n);
  } else {
    const VF shrink = Exp2(hn::Sub(hn::Set(d, before), base));
    alpha = hn::GetLane(shrink);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(hn::Add(hn::Mul(hn::LoadU(d, l + v * n), shrink), x[v]), d, l + v * n);
    }
  }
  work.alpha[r] = alpha;
  state.m[r] = m;
}

void Weights(TileWork& work, KeyBlock& block, State& state, bool fresh) {
  const bool plain = !(work.params->features & (kSoftCap | kAlibi | kNoSoftmax));
  for (int r = 0; r < work.num_rows; ++r) {
    if (work.visible[r] == 0) {
      work.alpha[r] = 1.0f;
      std::memset(work.s + static_cast<size_t>(r) * kBlock, 0, kBlock * sizeof(float));
      if (fresh) {
        state.m[r] = -infinity();
        std::memset(work.l + static_cast<size_t>(r) * kBlock, 0, kBlock * sizeof(float));
      }
    } else if (plain) {
      RowWeights<true>(work, block, state, r, fresh);
    } else {
      RowWeights<false>(work, block, state, r, fresh);
    }
  }
}

// Every row sees all of the block's first `count` keys: then nothing hidden can leak.
bool AllSeeAll(const TileWork& work, int count) {
  const uint64_t all = ~uint64_t{0} >> (kBlock - count);
  for (int r = 0; r < work.num_rows; ++r) {
    if (work.visible[r] != all) return false;
  }
  return true;
}

// Few rows: values go from memory through registers into the sums, in the order of the packed way.
template <int R, int NV, class T>
HWY_INLINE void FusedColumns(const TileWork& work, KeyBlock& block, const State& state, bool fresh, int dim) {
  const DF d;
  const int n = static_cast<int>(hn::Lanes(d));
  float* o = state.o + dim;
  VF acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      acc[r][v] = fresh ? hn::Zero(d) : hn::Mul(hn::LoadU(d, o + r * work.vo_pad + v * n), hn::Set(d, work.alpha[r]));
    }
  }
  for (int key = 0; key < block.count; ++key) {
    const T* in = static_cast<const T*>(block.v[key]) + dim;
    FetchShare(block, NV * n * static_cast<int>(sizeof(T)));
    VF row[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) row[v] = LoadAs(d, in + v * n);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const VF x = hn::Set(d, work.s[r * kBlock + key]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = hn::MulAdd(x, row[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) hn::StoreU(acc[r][v], d, o + r * work.vo_pad + v * n);
  }
}

template <int R, class T>
HWY_NOINLINE void FusedValues(const TileWork& work, KeyBlock& block, const State& state, bool fresh) {
  const int n = static_cast<int>(Lanes());
  int dim = 0;
#if HWY_TARGET == HWY_AVX3
  for (; dim + 4 * n <= work.vo_dim; dim += 4 * n) FusedColumns<R, 4, T>(work, block, state, fresh, dim);
#endif
  for (; dim + 2 * n <= work.vo_dim; dim += 2 * n) FusedColumns<R, 2, T>(work, block, state, fresh, dim);
  for (; dim + n <= work.vo_dim; dim += n) FusedColumns<R, 1, T>(work, block, state, fresh, dim);
}

template <class T>
void Values(TileWork& work, KeyBlock& block, State& state, bool fresh) {
  if (work.num_rows <= kGroup && work.vo_dim == work.vo_pad && AllSeeAll(work, block.count)) {
    switch (work.num_rows) {
      case 1: return FusedValues<1, T>(work, block, state, fresh);
      case 2: return FusedValues<2, T>(work, block, state, fresh);
      case 3: return FusedValues<3, T>(work, block, state, fresh);
      case 4: return FusedValues<4, T>(work, block, state, fresh);
      case 5: return FusedValues<5, T>(work, block, state, fresh);
      default: return FusedValues<6, T>(work, block, state, fresh);
    }
  }
  const bool finite = PackV<T>(work, block);
  const float ones[kGroup] = {1, 1, 1, 1, 1, 1};
  for (int r = 0; r < work.num_rows; r += kGroup) {
    const int rows = min(kGroup, work.num_rows - r);
    const float* p = work.s + static_cast<size_t>(r) * kBlock;
    float* o = state.o + static_cast<size_t>(r) * work.vo_pad;
    const uint64_t any = AnyVisible(work, r, rows);
    if (any == 0) {
      if (fresh) std::memset(o, 0, static_cast<size_t>(rows) * work.vo_pad * sizeof(float));
      continue;
    }
    const float* alpha = fresh ? nullptr : work.alpha + r;
    if (finite) {
      const int depth = 64 - __builtin_clzll(any);
      ProductDispatch(rows, p, kBlock, work.v, work.vo_pad, o, work.vo_pad, work.vo_pad, depth, alpha);
      continue;
    }
    // An infinity or NaN that a row doesn't see must not reach it as 0 * inf: only visible runs are added.
    for (int i = 0; i < rows; ++i, p += kBlock, o += work.vo_pad) {
      const float* factor = fresh ? nullptr : alpha + i;
      uint64_t bits = work.visible[r + i];
      if (bits == 0 && fresh) std::memset(o, 0, work.vo_pad * sizeof(float));
      while (bits != 0) {
        const int begin = __builtin_ctzll(bits);
        const uint64_t rest = ~(bits >> begin);
        const int length = rest == 0 ? 64 - begin : __builtin_ctzll(rest);
        ProductDispatch(1, p + begin, kBlock, work.v + static_cast<size_t>(begin) * work.vo_pad, work.vo_pad, o,
                        work.vo_pad, work.vo_pad, length, factor);
        factor = ones;
        bits = begin + length >= 64 ? 0 : bits >> (begin + length) << (begin + length);
      }
    }
  }
}

void FoldSums(TileWork& work, State& state) {
  const DF d;
  constexpr int n = kMaxLanes;
  for (int r = 0; r < work.num_rows; ++r) {
    float* l = work.l + static_cast<size_t>(r) * kBlock;
    int half = kBlock / 2;
    for (; half >= n; half /= 2) {
      for (int i = 0; i < half; i += n) hn::StoreU(hn::Add(hn::LoadU(d, l + i), hn::LoadU(d, l + half + i)), d, l + i);
    }
    for (; half >= 1; half /= 2) {
      for (int i = 0; i < half; ++i) l[i] += l[half + i];
    }
    state.l[r] = l[0];
    // A maximum never is NaN, but a chunk with a NaN in it must not pass for an empty one when states are joined.
    if (l[0] != l[0]) state.m[r] = quiet_nan();
  }
}

HWY_INLINE float ScalarExp2(float x) { return hn::GetLane(Exp2(hn::Set(DF(), x))); }

void Join(const State& into, const State& from, int32_t rows, int32_t ld) {
  const DF d;
  const int n = static_cast<int>(hn::Lanes(d));
  for (int32_t r = 0; r < rows; ++r) {
    float* a = into.o + static_cast<size_t>(r) * ld;
    const float* b = from.o + static_cast<size_t>(r) * ld;
    if (from.m[r] == -infinity()) continue;
    if (into.m[r] == -infinity()) {
      std::memcpy(a, b, ld * sizeof(float));
      into.m[r] = from.m[r];
      into.l[r] = from.l[r];
      continue;
    }
    const auto f = canon::join_factors(into.m[r], from.m[r], [](float x) HWY_ATTR { return ScalarExp2(x); });
    const VF fa = hn::Set(d, f.a), fb = hn::Set(d, f.b);
    for (int i = 0; i < ld; i += n) {
      hn::StoreU(hn::MulAdd(hn::LoadU(d, b + i), fb, hn::Mul(hn::LoadU(d, a + i), fa)), d, a + i);
    }
    into.l[r] = f.a * into.l[r] + f.b * from.l[r];
    into.m[r] = f.m;
  }
}

template <class T>
HWY_INLINE void StoreRow(const float* o, float factor, int dim, T* out) {
  const DF d;
  const hn::CappedTag<float, 8> d8;
  const int n = static_cast<int>(hn::Lanes(d)), n8 = static_cast<int>(hn::Lanes(d8));
  int i = 0;
  for (; i + n <= dim; i += n) StoreAs(d, hn::Mul(hn::LoadU(d, o + i), hn::Set(d, factor)), out + i);
  for (; i < dim; i += n8) StoreAs(d8, hn::Mul(hn::LoadU(d8, o + i), hn::Set(d8, factor)), out + i);
}

void Store(const float* o, float m, float l, float sink_log2, const AttentionParams& p, void* out, float* lse) {
  const auto joined = Sinks::join(sink_log2, m, l, [](float x) HWY_ATTR { return ScalarExp2(x); });
  float factor = 0.0f;
  if (p.features & kNoSoftmax) {
    factor = p.o_scale;
  } else if (joined.m != -infinity()) {
    factor = joined.factor / joined.l * p.o_scale;
  }
  if (p.o_dtype == DType::f32) {
    StoreRow(o, factor, p.head_dim_vo, static_cast<float*>(out));
  } else if (p.o_dtype == DType::bf16) {
    StoreRow(o, factor, p.head_dim_vo, static_cast<bf16*>(out));
  } else {
    StoreRow(o, factor, p.head_dim_vo, static_cast<f16*>(out));
  }
  if (lse) {
    const double base2 = static_cast<double>(joined.m) + std::log2(static_cast<double>(joined.l));
    *lse = joined.m == -infinity() ? -infinity() : static_cast<float>(p.lse_unit == 1.0f ? base2 : base2 * 0.6931471805599453);
  }
}

// ------------------------------------------------------------------------------------------------ by dtype

void LoadQAny(TileWork& work) {
  switch (work.params->q_dtype) {
    case DType::f32: return LoadQ<float>(work);
    case DType::bf16: return LoadQ<bf16>(work);
    default: return LoadQ<f16>(work);
  }
}
void ScoresAny(TileWork& work, KeyBlock& block) {
  switch (work.params->kv_dtype) {
    case DType::f32: return Scores<float>(work, block);
    case DType::bf16: return Scores<bf16>(work, block);
    default: return Scores<f16>(work, block);
  }
}
void ValuesAny(TileWork& work, KeyBlock& block, State& state, bool fresh) {
  switch (work.params->kv_dtype) {
    case DType::f32: return Values<float>(work, block, state, fresh);
    case DType::bf16: return Values<bf16>(work, block, state, fresh);
    default: return Values<f16>(work, block, state, fresh);
  }
}

const Engine& Fp32Engine() {
  static const Engine engine{hwy::TargetName(HWY_TARGET), LoadQAny, ScoresAny, Weights, ValuesAny, FoldSums, Join, Store};
  return engine;
}

}  // namespace fulmen::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fulmen {
HWY_EXPORT(Fp32Engine);
namespace cpu {
const Engine& fp32_engine() { return HWY_DYNAMIC_DISPATCH(Fp32Engine)(); }
}  // namespace cpu
}  // namespace fulmen
#endif
