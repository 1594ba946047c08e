// The bf16 engine: both products by vdpbf16ps, which adds two products of bf16 pairs to an fp32 lane. Debian's Highway
// has no target with it, so this file is written in intrinsics and chosen at run time. Everything between the products
// (logits, maxima, weights, sums) is the fp32 engine's.
//
// Order, for every number of rows: a score adds the pairs of head_dim in order, an output element the pairs of keys.
#include "cpu/attention_engine.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")

namespace fulmen::cpu {
namespace {

constexpr int kGroup = 6;      // rows of the register tile: 6 x 64 sums fill 24 of 32 registers
constexpr int kFusedRows = 8;  // up to here K and V go from memory through registers into the product, unpacked

alignas(64) constexpr uint16_t kZeroRow[kMaxHeadDim] = {};

inline const char* row_or_zeros(const void* row) {
  return static_cast<const char*>(row ? row : static_cast<const void*>(kZeroRow));
}
// always_inline: g++ 12 takes a function that only prefetches for pure and drops its calls.
inline __attribute__((always_inline)) void fetch(const void* row, int byte) {
  if (row) _mm_prefetch(static_cast<const char*>(row) + byte, _MM_HINT_T1);
}
inline __m512bh pairs(__m512i x) { return reinterpret_cast<__m512bh>(x); }

// c[r, n] = alpha[r] c[r, n] + sum_k a[r, k] . b[k, n] over pairs k in order; alpha null: from zero.
template <int R, int NV>
inline __attribute__((always_inline)) void product(const uint32_t* a, int lda, const uint32_t* b, int ldb, float* c,
                                                   int ldc, int depth, const float* alpha) {
  __m512 acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      acc[r][v] = alpha ? _mm512_mul_ps(_mm512_loadu_ps(c + r * ldc + 16 * v), _mm512_set1_ps(alpha[r]))
                        : _mm512_setzero_ps();
    }
  }
  for (int k = 0; k < depth; ++k) {
    __m512i row[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) row[v] = _mm512_loadu_si512(b + k * ldb + 16 * v);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(a[r * lda + k]));
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], pairs(x), pairs(row[v]));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) _mm512_storeu_ps(c + r * ldc + 16 * v, acc[r][v]);
  }
}

template <int R>
__attribute__((noinline)) void product_rows(const uint32_t* a, int lda, const uint32_t* b, int ldb, float* c, int ldc,
                                            int width, int depth, const float* alpha) {
  int col = 0;
  for (; col + 64 <= width; col += 64) product<R, 4>(a, lda, b + col, ldb, c + col, ldc, depth, alpha);
  for (; col + 32 <= width; col += 32) product<R, 2>(a, lda, b + col, ldb, c + col, ldc, depth, alpha);
  for (; col + 16 <= width; col += 16) product<R, 1>(a, lda, b + col, ldb, c + col, ldc, depth, alpha);
}

void product_any(int rows, const uint32_t* a, int lda, const uint32_t* b, int ldb, float* c, int ldc, int width,
                 int depth, const float* alpha) {
  switch (rows) {
    case 1: return product_rows<1>(a, lda, b, ldb, c, ldc, width, depth, alpha);
    case 2: return product_rows<2>(a, lda, b, ldb, c, ldc, width, depth, alpha);
    case 3: return product_rows<3>(a, lda, b, ldb, c, ldc, width, depth, alpha);
    case 4: return product_rows<4>(a, lda, b, ldb, c, ldc, width, depth, alpha);
    case 5: return product_rows<5>(a, lda, b, ldb, c, ldc, width, depth, alpha);
    default: return product_rows<6>(a, lda, b, ldb, c, ldc, width, depth, alpha);
  }
}

// 16 x 16 words, turned in registers.
inline __attribute__((always_inline)) void transpose(__m512i* x) {
  __m512i y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i a = x[i], b = x[i + 4], c = x[i + 8], d = x[i + 12];
    const __m512i ab0 = _mm512_shuffle_i32x4(a, b, 0x88), ab1 = _mm512_shuffle_i32x4(a, b, 0xdd);
    const __m512i cd0 = _mm512_shuffle_i32x4(c, d, 0x88), cd1 = _mm512_shuffle_i32x4(c, d, 0xdd);
    x[i] = _mm512_shuffle_i32x4(ab0, cd0, 0x88);
    x[i + 4] = _mm512_shuffle_i32x4(ab1, cd1, 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(ab0, cd0, 0xdd);
    x[i + 12] = _mm512_shuffle_i32x4(ab1, cd1, 0xdd);
  }
}

// 16 keys from key0, 16 pairs from `pair`, turned: x[i] holds pair + i of the 16 keys. The next block is fetched.
inline __attribute__((always_inline)) void load_keys(const TileWork& work, const KeyBlock& block, int key0, int pair,
                                                     __m512i* x) {
  const int left = work.qk_dim / 2 - pair;
  const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1 << left) - 1);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    x[i] = _mm512_maskz_loadu_epi32(mask, row_or_zeros(block.k[key0 + i]) + pair * 4);
    fetch(block.next_k[key0 + i], pair * 4);
  }
  transpose(x);
}

template <int R>
__attribute__((noinline)) void scores_fused(TileWork& work, const KeyBlock& block) {
  const uint32_t* q = static_cast<const uint32_t*>(work.q);
  const int ldq = work.qk_pad / 2, num_pairs = work.qk_dim / 2;
  for (int key0 = 0; key0 < block.count; key0 += 16) {
    __m512 acc[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
    for (int pair = 0; pair < num_pairs; pair += 16) {
      __m512i x[16];
      load_keys(work, block, key0, pair, x);
      const uint32_t* a = q + pair;
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        if (i % 4 == 0 && pair + i >= num_pairs) break;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          acc[r] = _mm512_dpbf16_ps(acc[r], pairs(_mm512_set1_epi32(static_cast<int>(a[r * ldq + i]))), pairs(x[i]));
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(work.s + r * kBlock + key0, acc[r]);
  }
}

void scores_packed(TileWork& work, const KeyBlock& block) {
  uint32_t* kt = static_cast<uint32_t*>(work.k);
  const int num_pairs = work.qk_dim / 2;
  for (int key0 = 0; key0 < block.count; key0 += 16) {
    for (int pair = 0; pair < num_pairs; pair += 16) {
      __m512i x[16];
      load_keys(work, block, key0, pair, x);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        if (i % 4 == 0 && pair + i >= num_pairs) break;
        _mm512_storeu_si512(kt + (pair + i) * kBlock + key0, x[i]);
      }
    }
  }
  const int width = round_up(block.count, 16), ldq = work.qk_pad / 2;
  for (int r = 0; r < work.num_rows; r += kGroup) {
    const int rows = min(kGroup, work.num_rows - r);
    uint64_t any = 0;
    for (int i = 0; i < rows; ++i) any |= work.visible[r + i];
    if (!any) continue;
    product_any(rows, static_cast<const uint32_t*>(work.q) + r * ldq, ldq, kt, kBlock, work.s + r * kBlock, kBlock,
                width, num_pairs, nullptr);
  }
}

void scores(TileWork& work, const KeyBlock& block) {
  switch (work.num_rows) {
    case 1: return scores_fused<1>(work, block);
    case 2: return scores_fused<2>(work, block);
    case 3: return scores_fused<3>(work, block);
    case 4: return scores_fused<4>(work, block);
    case 5: return scores_fused<5>(work, block);
    case 6: return scores_fused<6>(work, block);
    case 7: return scores_fused<7>(work, block);
    case 8: return scores_fused<8>(work, block);
    default: return scores_packed(work, block);
  }
}

// Weights of each row as bf16 pairs of keys, in place: 32 words at the head of the row's 64.
void round_weights(TileWork& work) {
  for (int r = 0; r < work.num_rows; ++r) {
    float* s = work.s + r * kBlock;
    const __m512 a = _mm512_loadu_ps(s), b = _mm512_loadu_ps(s + 16), c = _mm512_loadu_ps(s + 32),
                 d = _mm512_loadu_ps(s + 48);
    _mm512_storeu_si512(s, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
    _mm512_storeu_si512(s + 16, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(d, c)));
  }
}

// Values of keys 2 j and 2 j + 1, 32 dims from `dim`, as pairs: low holds dims 0 .. 15, high 16 .. 31.
struct ValuePairs {
  __m512i low, high;
};
inline __attribute__((always_inline)) ValuePairs load_values(const TileWork& work, const KeyBlock& block, int j, int dim) {
  alignas(64) static constexpr uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                    8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  alignas(64) static constexpr uint16_t kHigh[32] = {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
                                                     24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  const int left = work.vo_dim - dim;
  const __mmask32 mask = left >= 32 ? 0xffffffffu : left <= 0 ? 0u : (1u << left) - 1;
  const void* second = 2 * j + 1 < block.count ? block.v[2 * j + 1] : nullptr;
  const __m512i a = _mm512_maskz_loadu_epi16(mask, row_or_zeros(block.v[2 * j]) + dim * 2);
  const __m512i b = _mm512_maskz_loadu_epi16(mask, row_or_zeros(second) + dim * 2);
  return {_mm512_permutex2var_epi16(a, _mm512_load_si512(kLow), b),
          _mm512_permutex2var_epi16(a, _mm512_load_si512(kHigh), b)};
}

// No row sees less of the block than its first `count` keys: then nothing hidden can leak.
bool all_see_all(const TileWork& work, int count) {
  const uint64_t full = count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
  for (int r = 0; r < work.num_rows; ++r) {
    if (work.visible[r] != full) return false;
  }
  return true;
}

template <int R, int NV>
inline __attribute__((always_inline)) void values_fused_columns(TileWork& work, const KeyBlock& block, State& state,
                                                                bool fresh, int dim) {
  __m512 acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      acc[r][v] = fresh ? _mm512_setzero_ps()
                        : _mm512_mul_ps(_mm512_loadu_ps(state.o + r * work.vo_pad + dim + 16 * v),
                                        _mm512_set1_ps(work.alpha[r]));
    }
  }
  const uint32_t* p = reinterpret_cast<const uint32_t*>(work.s);
  const int depth = (block.count + 1) / 2;
  for (int j = 0; j < depth; ++j) {
    __m512i v[NV];
#pragma GCC unroll 2
    for (int i = 0; i < NV; i += 2) {
      const ValuePairs x = load_values(work, block, j, dim + 16 * i);
      v[i] = x.low;
      if (i + 1 < NV) v[i + 1] = x.high;
      fetch(block.next_v[2 * j], (dim + 16 * i) * 2);
      fetch(block.next_v[2 * j + 1], (dim + 16 * i) * 2);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(p[r * kBlock + j]));
#pragma GCC unroll 4
      for (int i = 0; i < NV; ++i) acc[r][i] = _mm512_dpbf16_ps(acc[r][i], pairs(x), pairs(v[i]));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) _mm512_storeu_ps(state.o + r * work.vo_pad + dim + 16 * v, acc[r][v]);
  }
}

template <int R>
__attribute__((noinline)) void values_fused(TileWork& work, const KeyBlock& block, State& state, bool fresh) {
  int dim = 0;
  if constexpr (R <= 5) {
    for (; dim + 64 <= work.vo_pad; dim += 64) values_fused_columns<R, 4>(work, block, state, fresh, dim);
  }
  for (; dim + 32 <= work.vo_pad; dim += 32) values_fused_columns<R, 2>(work, block, state, fresh, dim);
  for (; dim + 16 <= work.vo_pad; dim += 16) values_fused_columns<R, 1>(work, block, state, fresh, dim);
}

// Values as pairs of keys in rows of vo_pad words; true if all are finite.
bool pack_values(TileWork& work, const KeyBlock& block) {
  uint32_t* out = reinterpret_cast<uint32_t*>(work.v);
  const __m512i magnitude = _mm512_set1_epi16(0x7fff), infinite = _mm512_set1_epi16(0x7f80);
  __mmask32 bad = 0;
  const auto check = [&](__m512i x) {
    bad |= _mm512_cmpge_epu16_mask(_mm512_and_si512(x, magnitude), infinite);
  };
  for (int j = 0; j < (block.count + 1) / 2; ++j, out += work.vo_pad) {
    for (int dim = 0; dim < work.vo_pad; dim += 32) {
      const ValuePairs x = load_values(work, block, j, dim);
      fetch(block.next_v[2 * j], dim * 2);
      fetch(block.next_v[2 * j + 1], dim * 2);
      check(x.low);
      _mm512_storeu_si512(out + dim, x.low);
      if (dim + 16 < work.vo_pad) {
        check(x.high);
        _mm512_storeu_si512(out + dim + 16, x.high);
      }
    }
  }
  return bad == 0;
}

// A row's own copy of the packed values, what it doesn't see zeroed: 0 * inf would be NaN.
void hide_values(TileWork& work, int count, uint64_t visible) {
  const uint32_t* in = reinterpret_cast<const uint32_t*>(work.v);
  uint32_t* out = reinterpret_cast<uint32_t*>(work.spare);
  for (int j = 0; j < (count + 1) / 2; ++j) {
    const uint32_t keep = ((visible >> (2 * j)) & 1 ? 0xffffu : 0u) | ((visible >> (2 * j + 1)) & 1 ? 0xffff0000u : 0u);
    for (int d = 0; d < work.vo_pad; ++d) out[j * work.vo_pad + d] = in[j * work.vo_pad + d] & keep;
  }
}

void values_packed(TileWork& work, const KeyBlock& block, State& state, bool fresh, bool clean) {
  const bool finite = pack_values(work, block) || clean;
  for (int r = 0; r < work.num_rows; r += kGroup) {
    const int rows = min(kGroup, work.num_rows - r);
    const uint32_t* p = reinterpret_cast<const uint32_t*>(work.s) + r * kBlock;
    float* o = state.o + r * work.vo_pad;
    const float* alpha = fresh ? nullptr : work.alpha + r;
    uint64_t any = 0;
    for (int i = 0; i < rows; ++i) any |= work.visible[r + i];
    if (any == 0) {
      if (fresh) std::memset(o, 0, sizeof(float) * static_cast<size_t>(rows * work.vo_pad));
    } else if (finite) {
      const int depth = (64 - __builtin_clzll(any) + 1) / 2;
      product_any(rows, p, kBlock, reinterpret_cast<const uint32_t*>(work.v), work.vo_pad, o, work.vo_pad, work.vo_pad,
                  depth, alpha);
    } else {
      for (int i = 0; i < rows; ++i) {
        hide_values(work, block.count, work.visible[r + i]);
        product_any(1, p + i * kBlock, kBlock, reinterpret_cast<const uint32_t*>(work.spare), work.vo_pad,
                    o + i * work.vo_pad, work.vo_pad, work.vo_pad, (block.count + 1) / 2, alpha ? alpha + i : nullptr);
      }
    }
  }
}

void values(TileWork& work, const KeyBlock& block, State& state, bool fresh) {
  round_weights(work);
  const bool clean = all_see_all(work, block.count);
  if (!clean) return values_packed(work, block, state, fresh, false);
  switch (work.num_rows) {
    case 1: return values_fused<1>(work, block, state, fresh);
    case 2: return values_fused<2>(work, block, state, fresh);
    case 3: return values_fused<3>(work, block, state, fresh);
    case 4: return values_fused<4>(work, block, state, fresh);
    case 5: return values_fused<5>(work, block, state, fresh);
    case 6: return values_fused<6>(work, block, state, fresh);
    case 7: return values_fused<7>(work, block, state, fresh);
    case 8: return values_fused<8>(work, block, state, fresh);
    default: return values_packed(work, block, state, fresh, true);
  }
}

void load_q(TileWork& work) {
  char* q = static_cast<char*>(work.q);
  for (int r = 0; r < work.num_rows; ++r) {
    std::memcpy(q + r * work.qk_pad * 2, work.rows[r].q, static_cast<size_t>(work.qk_dim) * 2);
  }
}

}  // namespace
}  // namespace fulmen::cpu

#pragma GCC pop_options

namespace fulmen::cpu {

const Engine* bf16_engine() {
  static const bool available = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  static const Engine engine = [] {
    Engine e = fp32_engine();
    e.name = "avx512_bf16";
    e.q_bytes = 2;
    e.load_q = load_q;
    e.scores = scores;
    e.values = values;
    return e;
  }();
  return available ? &engine : nullptr;
}

}  // namespace fulmen::cpu

#else

namespace fulmen::cpu {
const Engine* bf16_engine() { return nullptr; }
}  // namespace fulmen::cpu

#endif
