// The bf16 engine: both products by vdpbf16ps, which adds two products of bf16 pairs to an fp32 lane. Debian's Highway
// has no target with it, so this file is written in intrinsics and chosen at run time. Everything between the products
// (logits, maxima, weights, sums) is the fp32 engine's.
//
// Order, for every number of rows: a score is ((s0 + s1) + s2) + s3, where s_b adds the pairs of head_dim with
// (pair / 4) mod 4 = b in order; an output element adds the pairs of keys in order. The four sums let a decoding row take
// keys that are turned by half only, which costs half the shuffles.
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

// Scores of R rows against kt[pair, 64 keys]: four passes over a quarter of the pairs each, added in order.
template <int R, int NV>
inline __attribute__((always_inline)) void score_columns(const uint32_t* q, int ldq, const uint32_t* kt, float* s,
                                                         int num_pairs) {
  for (int quarter = 0; quarter < 4; ++quarter) {
    __m512 acc[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = _mm512_setzero_ps();
    }
    for (int first = 4 * quarter; first < num_pairs; first += 16) {
      for (int k = first; k < first + 4; ++k) {
        __m512i row[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) row[v] = _mm512_loadu_si512(kt + k * kBlock + 16 * v);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m512i x = _mm512_set1_epi32(static_cast<int>(q[r * ldq + k]));
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], pairs(row[v]), pairs(x));
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        float* to = s + r * kBlock + 16 * v;
        _mm512_storeu_ps(to, quarter == 0 ? acc[r][v] : _mm512_add_ps(_mm512_loadu_ps(to), acc[r][v]));
      }
    }
  }
}

template <int R>
__attribute__((noinline)) void score_rows(const uint32_t* q, int ldq, const uint32_t* kt, float* s, int width,
                                          int num_pairs) {
  int col = 0;
  for (; col + 64 <= width; col += 64) score_columns<R, 4>(q, ldq, kt + col, s + col, num_pairs);
  for (; col + 32 <= width; col += 32) score_columns<R, 2>(q, ldq, kt + col, s + col, num_pairs);
  for (; col + 16 <= width; col += 16) score_columns<R, 1>(q, ldq, kt + col, s + col, num_pairs);
}

void score_rows_any(int rows, const uint32_t* q, int ldq, const uint32_t* kt, float* s, int width, int num_pairs) {
  switch (rows) {
    case 1: return score_rows<1>(q, ldq, kt, s, width, num_pairs);
    case 2: return score_rows<2>(q, ldq, kt, s, width, num_pairs);
    case 3: return score_rows<3>(q, ldq, kt, s, width, num_pairs);
    case 4: return score_rows<4>(q, ldq, kt, s, width, num_pairs);
    case 5: return score_rows<5>(q, ldq, kt, s, width, num_pairs);
    default: return score_rows<6>(q, ldq, kt, s, width, num_pairs);
  }
}

// Four rows of 16 words -> word 4 b + c of all four in block b of x[c].
inline __attribute__((always_inline)) void turn_quad(__m512i* x) {
  const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
  const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
  x[0] = _mm512_unpacklo_epi64(a, c);
  x[1] = _mm512_unpackhi_epi64(a, c);
  x[2] = _mm512_unpacklo_epi64(b, d);
  x[3] = _mm512_unpackhi_epi64(b, d);
}

// Blocks of four vectors, turned: x[b] = block b of x[0], x[1], x[2], x[3].
inline __attribute__((always_inline)) void turn_blocks(__m512i& x0, __m512i& x1, __m512i& x2, __m512i& x3) {
  const __m512i a = _mm512_shuffle_i32x4(x0, x1, 0x88), b = _mm512_shuffle_i32x4(x0, x1, 0xdd);
  const __m512i c = _mm512_shuffle_i32x4(x2, x3, 0x88), d = _mm512_shuffle_i32x4(x2, x3, 0xdd);
  x0 = _mm512_shuffle_i32x4(a, c, 0x88);
  x2 = _mm512_shuffle_i32x4(a, c, 0xdd);
  x1 = _mm512_shuffle_i32x4(b, d, 0x88);
  x3 = _mm512_shuffle_i32x4(b, d, 0xdd);
}

// Keys key0 .. key0 + kKeys - 1, 16 pairs from `pair`, turned in quads. The next block is fetched.
template <int kKeys>
inline __attribute__((always_inline)) void load_quads(const TileWork& work, KeyBlock& block, int key0, int pair,
                                                      __m512i* x) {
  const int left = work.qk_dim / 2 - pair;
  const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1 << left) - 1);
#pragma GCC unroll 16
  for (int i = 0; i < kKeys; ++i) {
    x[i] = _mm512_maskz_loadu_epi32(mask, static_cast<const char*>(block.k[key0 + i]) + pair * 4);
    if (i % 2 == 0) block.next.line_pair();
  }
#pragma GCC unroll 4
  for (int i = 0; i < kKeys; i += 4) turn_quad(x + i);
}

// Few rows: keys go from memory through registers into the product. A query pair stands ready in the form that a quad
// has: q[row, pair / 16, c] is a vector whose block b repeats pair 4 b + c.
template <int R>
__attribute__((noinline)) void scores_fused(TileWork& work, KeyBlock& block) {
  constexpr int kKeys = R <= 4 ? 16 : 8, kQuads = kKeys / 4;  // as many sums as registers hold beside the keys
  const char* q = static_cast<const char*>(work.q);
  const int num_pairs = work.qk_dim / 2;
  for (int key0 = 0; key0 < block.count; key0 += kKeys) {
    __m512 acc[R][kQuads];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kQuads; ++i) acc[r][i] = _mm512_setzero_ps();
    }
    for (int pair = 0; pair < num_pairs; pair += 16) {
      __m512i x[kKeys];
      load_quads<kKeys>(work, block, key0, pair, x);
      const char* a = q + pair * 16;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
          const __m512i query = _mm512_load_si512(a + r * work.q_row_bytes + c * 64);
#pragma GCC unroll 4
          for (int i = 0; i < kQuads; ++i) acc[r][i] = _mm512_dpbf16_ps(acc[r][i], pairs(x[4 * i + c]), pairs(query));
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* s = work.s + r * kBlock + key0;
      if constexpr (kQuads == 4) {
        __m512i b0 = _mm512_castps_si512(acc[r][0]), b1 = _mm512_castps_si512(acc[r][1]),
                b2 = _mm512_castps_si512(acc[r][2]), b3 = _mm512_castps_si512(acc[r][3]);
        turn_blocks(b0, b1, b2, b3);
        const __m512 sum = _mm512_add_ps(_mm512_castsi512_ps(b0), _mm512_castsi512_ps(b1));
        _mm512_storeu_ps(s, _mm512_add_ps(_mm512_add_ps(sum, _mm512_castsi512_ps(b2)), _mm512_castsi512_ps(b3)));
      } else {
#pragma GCC unroll 4
        for (int i = 0; i < kQuads; ++i) {
          const __m128 sum = _mm_add_ps(_mm512_castps512_ps128(acc[r][i]), _mm512_extractf32x4_ps(acc[r][i], 1));
          _mm_storeu_ps(s + 4 * i, _mm_add_ps(_mm_add_ps(sum, _mm512_extractf32x4_ps(acc[r][i], 2)),
                                              _mm512_extractf32x4_ps(acc[r][i], 3)));
        }
      }
    }
  }
}

// Many rows: a block is turned whole, kt[pair, key], and stays in the first cache for all of them.
void scores_packed(TileWork& work, KeyBlock& block) {
  uint32_t* kt = static_cast<uint32_t*>(work.k);
  const int num_pairs = work.qk_dim / 2;
  for (int key0 = 0; key0 < block.count; key0 += 16) {
    for (int pair = 0; pair < num_pairs; pair += 16) {
      __m512i x[16];
      load_quads<16>(work, block, key0, pair, x);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) turn_blocks(x[c], x[4 + c], x[8 + c], x[12 + c]);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {  // x[4 b + c] is pair 4 b + c
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
    score_rows_any(rows, static_cast<const uint32_t*>(work.q) + r * ldq, ldq, kt, work.s + r * kBlock, width, num_pairs);
  }
}

void scores(TileWork& work, KeyBlock& block) {
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
inline __attribute__((always_inline)) ValuePairs load_values(const TileWork& work, KeyBlock& block, int j, int dim) {
  alignas(64) static constexpr uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                    8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  alignas(64) static constexpr uint16_t kHigh[32] = {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
                                                     24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  const int left = work.vo_dim - dim;
  const __mmask32 mask = left >= 32 ? 0xffffffffu : left <= 0 ? 0u : (1u << left) - 1;
  // Past block.count there is kZeroRow.
  const __m512i a = _mm512_maskz_loadu_epi16(mask, static_cast<const char*>(block.v[2 * j]) + dim * 2);
  const __m512i b = _mm512_maskz_loadu_epi16(mask, static_cast<const char*>(block.v[2 * j + 1]) + dim * 2);
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
inline __attribute__((always_inline)) void values_fused_columns(TileWork& work, KeyBlock& block, State& state,
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
      block.next.line_pair();
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
__attribute__((noinline)) void values_fused(TileWork& work, KeyBlock& block, State& state, bool fresh) {
  int dim = 0;
  if constexpr (R <= 5) {
    for (; dim + 64 <= work.vo_pad; dim += 64) values_fused_columns<R, 4>(work, block, state, fresh, dim);
  }
  for (; dim + 32 <= work.vo_pad; dim += 32) values_fused_columns<R, 2>(work, block, state, fresh, dim);
  for (; dim + 16 <= work.vo_pad; dim += 16) values_fused_columns<R, 1>(work, block, state, fresh, dim);
}

// Values as pairs of keys in rows of vo_pad words; true if all are finite.
bool pack_values(TileWork& work, KeyBlock& block) {
  uint32_t* out = reinterpret_cast<uint32_t*>(work.v);
  const __m512i magnitude = _mm512_set1_epi16(0x7fff), infinite = _mm512_set1_epi16(0x7f80);
  __mmask32 bad = 0;
  const auto check = [&](__m512i x) {
    bad |= _mm512_cmpge_epu16_mask(_mm512_and_si512(x, magnitude), infinite);
  };
  for (int j = 0; j < (block.count + 1) / 2; ++j, out += work.vo_pad) {
    for (int dim = 0; dim < work.vo_pad; dim += 32) {
      const ValuePairs x = load_values(work, block, j, dim);
      block.next.line_pair();
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

void values_packed(TileWork& work, KeyBlock& block, State& state, bool fresh, bool clean) {
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

void values(TileWork& work, KeyBlock& block, State& state, bool fresh) {
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
  if (work.head_rows > kFusedRows) {
    work.q_row_bytes = work.qk_pad * 2;
    for (int r = 0; r < work.num_rows; ++r) {
      std::memcpy(q + r * work.q_row_bytes, work.rows[r].q, static_cast<size_t>(work.qk_dim) * 2);
    }
    return;
  }
  work.q_row_bytes = round_up(work.qk_pad, 32) * 8;
  const int num_pairs = work.qk_dim / 2;
  for (int r = 0; r < work.num_rows; ++r) {
    uint32_t row[round_up(kMaxHeadDim / 2, 16)] = {};
    std::memcpy(row, work.rows[r].q, static_cast<size_t>(work.qk_dim) * 2);
    for (int pair = 0; pair < num_pairs; pair += 16) {
      const __m512i x = _mm512_loadu_si512(row + pair);
      char* to = q + r * work.q_row_bytes + pair * 16;
      // Word c of each block, repeated in it.
      _mm512_storeu_si512(to, _mm512_shuffle_epi32(x, static_cast<_MM_PERM_ENUM>(0x00)));
      _mm512_storeu_si512(to + 64, _mm512_shuffle_epi32(x, static_cast<_MM_PERM_ENUM>(0x55)));
      _mm512_storeu_si512(to + 128, _mm512_shuffle_epi32(x, static_cast<_MM_PERM_ENUM>(0xaa)));
      _mm512_storeu_si512(to + 192, _mm512_shuffle_epi32(x, static_cast<_MM_PERM_ENUM>(0xff)));
    }
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
