// The built-in variants inside attend_sm80, each compiled in only where the config asks. They act at three points: on rows of
// Q and K that have landed in shared memory (RoPE), on the scores (soft cap, ALiBi, custom mask), and where a row ends (sinks,
// none of which a partial state knows). What a variant computes stands in kernels/variants, one source with the CPU's.
#pragma once

#include <kernels/attention/attend_items.cuh>
#include <kernels/attention/attend_sm80.config.hpp>
#include <kernels/attention/attend_steps.cuh>
#include <kernels/math/convert.hpp>
#include <kernels/math/rotation.hpp>
#include <kernels/ptx/memory.cuh>
#include <kernels/ptx/special.cuh>
#include <kernels/tile/fragments.cuh>

namespace fulmen {

// For the variants. Absolute error below 2^-21, which is what counts in a logit; tanh.approx errs by 2^-11.
FULMEN_FN float tanh(float x) {
  const float e = ptx::ex2_approx(x * 2.8853900817779268f);  // e^2x
  return fma(-2.0f, ptx::rcp_approx(1.0f + e), 1.0f);
}

#include <kernels/variants/at.hpp>

#include <kernels/variants/alibi.hpp>
#include <kernels/variants/custom_mask.hpp>
#include <kernels/variants/rope.hpp>
#include <kernels/variants/sinks.hpp>
#include <kernels/variants/soft_cap.hpp>

constexpr float kLog2e = 1.44269504088896341f;

// A user's variant is the struct that the generated unit derives UserVariant<true> from:
//   struct Params { ... };                                                     copied from the call
//   static float logit(const Params&, const VariantAt&, float s)               optional: after soft cap and ALiBi
//   static bool visible(const Params&, const VariantAt&)                       optional: on top of causality and window
struct VariantAt {
  int32_t key, position;  // of the key and of the row, from the start of the request
  int32_t qo_head;
};
template <bool>
struct UserVariant;

// Params of another size than the variant's have been given: everything becomes NaN.
template <class User>
FULMEN_FN bool user_params_fit(const AttendSm80Params& params) {
  return params.variant_bytes == (__is_empty(typename User::Params) ? 0 : static_cast<int32_t>(sizeof(typename User::Params)));
}

// ------------------------------------------------------------------------------------------------ any address

FULMEN_FN ptx::Words4 gather_8(const uint16_t* p) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = p[2 * i] | static_cast<uint32_t>(p[2 * i + 1]) << 16;
  return {words[0], words[1], words[2], words[3]};
}
FULMEN_FN void scatter_8(uint16_t* p, const ptx::Words4& w) {
  const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    p[2 * i] = static_cast<uint16_t>(words[i]);
    p[2 * i + 1] = static_cast<uint16_t>(words[i] >> 16);
  }
}
template <bool kGeneral>
FULMEN_FN uint32_t load_two(const uint16_t* p) {
  if constexpr (kGeneral) return p[0] | static_cast<uint32_t>(p[1]) << 16;
  return *reinterpret_cast<const uint32_t*>(p);
}

// ------------------------------------------------------------------------------------------------ rows

// What variants ask of a row beyond AttendRow.
struct VariantRow {
  int32_t position, head;
  float slope;  // ALiBi's
  int64_t mask_bit, mask_end;  // its first bit, and the first that isn't its own; mask_end < 0: the request has no mask
};

template <AttendSm80Config kC>
FULMEN_FN VariantRow make_variant_row(const AttendSm80Params& params, const PlanView& plan, const AttendItem& item,
                                      const AttendRow& row) {
  if (row.token < 0) return {};
  const Segment& s = item.piece.segment;
  const int32_t level = params.shape.num_levels - 1;
  const int64_t* begins = plan.row_begin(level);
  const int32_t request = s.last ? s.index : search_prefix(begins, plan.header->num_segments[level], row.token);
  const int64_t length = plan.key_end(level)[request], index = row.token - begins[request];
  const int64_t num_rows = begins[request + 1] - begins[request];
  VariantRow out{static_cast<int32_t>(length - num_rows + index), row.head, 0.0f, 0, 0};
  if constexpr (kC.variants.alibi) out.slope = params.alibi_slopes[row.head];
  if constexpr (kC.variants.custom_mask) {
    const int64_t begin = load_index(params.mask_indptr, params.mask_indptr_i64, request);
    const int64_t end = load_index(params.mask_indptr, params.mask_indptr_i64, request + 1);
    const int64_t needed = length < 0 ? 0 : (num_rows * length + 7) >> 3;
    const int64_t given = begin < 0 || end < begin ? -1 : end - begin;  // no difference that overflows
    if (given >= needed && end <= params.mask_bytes) {
      out.mask_bit = begin * 8 + index * length;
      out.mask_end = out.mask_bit + length;
    } else {
      report_fault(params, kFaultKvLen, level, request, needed, given);
      out.mask_end = -1;
    }
  }
  return out;
}

// ------------------------------------------------------------------------------------------------ Q and K

template <class T> FULMEN_FN void exchange(T& a, T& b) {
  const T x = a;
  a = b, b = x;
}

// Two pairs of a row as the words that hold them: of neighbours a word is a pair, else each has a half of both.
template <DType kType, bool kInterleaved>
FULMEN_FN void turn_words(uint32_t& u, uint32_t& v, const Rotation (&by)[2]) {
  using T = storage_t<kType>;
  float a[2], b[2];
  a[0] = low_float<T>(u), b[1] = high_float<T>(v);
  if constexpr (kInterleaved) {
    b[0] = high_float<T>(u), a[1] = low_float<T>(v);
  } else {
    b[0] = low_float<T>(v), a[1] = high_float<T>(u);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float x = fma(a[i], by[i].cos, -(b[i] * by[i].sin));
    b[i] = fma(b[i], by[i].cos, a[i] * by[i].sin);
    a[i] = x;
  }
  u = kInterleaved ? pack<kType>(a[0], b[0]) : pack<kType>(a[0], a[1]);
  v = kInterleaved ? pack<kType>(a[1], b[1]) : pack<kType>(b[0], b[1]);
}

// Pairs 2 word and 2 word + 1 of a lane: their dims' words in a row, and their angles at a position.
FULMEN_FN int32_t word_dim(const AttendSm80Params& params, int word, int k, bool interleaved) {
  if (interleaved) return 4 * word + 2 * k;
  return k == 0 ? Rope::first_dim(2 * word, params.rotary_dim, false) : Rope::second_dim(2 * word, params.rotary_dim, false);
}
FULMEN_FN void turn_to(Rotation (&by)[2], const AttendSm80Params& params, int word, int32_t position) {
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const Rotation turn = rotation_of(turn_of(position, params.rope_step[2 * word + k]));
    by[k] = {turn.cos * params.rope_scale, turn.sin * params.rope_scale};
  }
}

// Turns rows [first, end) of a tile by their positions, which all lanes ask for; 45 instructions a pair where the position
// is another than the last row's, else 15.
template <DType kType, int kDim, class PositionOf>
FULMEN_FN void turn_rows(uint32_t tile, int first, int end, const AttendSm80Params& params, PositionOf position_of, int lane) {
  const bool interleaved = params.rope_interleaved != 0;
#pragma unroll 1
  for (int begin = 0; begin < params.rotary_dim / 4; begin += 32) {
    const int word = begin + lane;
    const bool active = word < params.rotary_dim / 4;
    Rotation now[2];
    int32_t last = 0;
#pragma unroll 1
    for (int r = first; r < end; ++r) {
      const int32_t position = position_of(r);
      if (!active) continue;
      if (r == first || position != last) turn_to(now, params, word, position);
      last = position;
      uint32_t* places[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int32_t dim = word_dim(params, word, k, interleaved);
        places[k] = static_cast<uint32_t*>(ptx::shared_pointer(tile + tile_offset<kDim>(r, dim >> 3) + (dim & 7) * 2));
      }
      uint32_t u = *places[0], v = *places[1];
      if (interleaved) {
        turn_words<kType, true>(u, v, now);
      } else {
        turn_words<kType, false>(u, v, now);
      }
      *places[0] = u, *places[1] = v;
    }
  }
}

// The same where pairs don't come by twos, element by element.
template <DType kType, int kDim, class PositionOf>
FULMEN_FN void turn_odd_rows(uint32_t tile, int first, int end, const AttendSm80Params& params, PositionOf position_of, int lane) {
  using T = storage_t<kType>;
  const bool interleaved = params.rope_interleaved != 0;
  const auto element = [&](int r, int32_t dim) {
    return static_cast<T*>(ptx::shared_pointer(tile + tile_offset<kDim>(r, dim >> 3) + (dim & 7) * 2));
  };
#pragma unroll 1
  for (int begin = 0; begin < params.rotary_dim / 2; begin += 32) {
    const int pair = begin + lane;
    const bool active = pair < params.rotary_dim / 2;
#pragma unroll 1
    for (int r = first; r < end; ++r) {
      const int32_t position = position_of(r);
      if (!active) continue;
      const Rotation turn = rotation_of(turn_of(position, params.rope_step[pair]));
      T* a = element(r, Rope::first_dim(pair, params.rotary_dim, interleaved));
      T* b = element(r, Rope::second_dim(pair, params.rotary_dim, interleaved));
      float x = to_float(*a), y = to_float(*b);
      Rope::rotate(x, y, turn.cos * params.rope_scale, turn.sin * params.rope_scale);
      *a = from_float<T>(x);
      *b = from_float<T>(y);
    }
  }
}

template <DType kType, int kDim, class PositionOf>
FULMEN_FN void turn_queries(uint32_t tile, int first, int end, const AttendSm80Params& params, PositionOf position_of, int lane) {
  if (params.rotary_dim % 4 == 0) {
    turn_rows<kType, kDim>(tile, first, end, params, position_of, lane);
  } else {
    turn_odd_rows<kType, kDim>(tile, first, end, params, position_of, lane);
  }
}

// The rows of a chain, the first of which is key `key`: two pairs a lane. The first row's angle is worked out, the others follow:
// cos(x + t) = 2 cos(t) cos(x) - cos(x - t), sin likewise, t the angle of one key. After 15 steps they are 2^-16 off at most.
// Where half a warp has another chain, rows on the same banks, it goes `across`: it takes its two words the other way round, which
// between halves of pairs changes the angle's sign and no bit of what comes out.
template <DType kType, int kDim, int kChain, bool kInterleaved>
FULMEN_FN void turn_chain(uint32_t tile, int row, const AttendSm80Params& params, int32_t key, int word,
                          const Rotation (&one)[2], bool across) {
  constexpr int kBatch = 4, kRowBytes = kDim * 2;
  static_assert(kChain % kBatch == 0, "whole batches");
  Rotation now[2];
  turn_to(now, params, word, key);
  Rotation before[2];
  float twice[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    before[k] = {fma(now[k].cos, one[k].cos, now[k].sin * one[k].sin), fma(now[k].sin, one[k].cos, -(now[k].cos * one[k].sin))};
    twice[k] = 2.0f * one[k].cos;
  }
  uint32_t at[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int32_t dim = word_dim(params, word, k, kInterleaved);
    at[k] = tile + tile_offset<kDim>(row, dim >> 3) + (dim & 7) * 2;
  }
  if (across) {
    exchange(at[0], at[1]);
    if constexpr (kInterleaved) {
      exchange(now[0], now[1]), exchange(before[0], before[1]), exchange(twice[0], twice[1]);
    } else {
#pragma unroll
      for (int k = 0; k < 2; ++k) now[k].sin = -now[k].sin, before[k].sin = -before[k].sin;
    }
  }
#pragma unroll 1
  for (int r = 0; r < kChain; r += kBatch) {
    uint32_t* places[kBatch][2];  // r is a multiple of 4: row r + i lies at ^ i << 4 of where r does, i rows further
    uint32_t words[kBatch][2];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        places[i][k] = static_cast<uint32_t*>(ptx::shared_pointer((at[k] ^ i << 4) + i * kRowBytes));
        words[i][k] = *places[i][k];
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      turn_words<kType, kInterleaved>(words[i][0], words[i][1], now);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        *places[i][k] = words[i][k];
        const Rotation next{fma(twice[k], now[k].cos, -before[k].cos), fma(twice[k], now[k].sin, -before[k].sin)};
        before[k] = now[k];
        now[k] = next;
      }
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) at[k] = (at[k] ^ kBatch << 4) + kBatch * kRowBytes;
  }
}

// Turns kRows rows of a tile of K from `first` on, of which the first is key `key`, by one warp in chains. The canon's tiles
// begin at multiples of 64, and a key's place in its chain, with it its bits, is the same in all of them: chains are whole.
template <int kDim>
constexpr int kLongestChain = kDim == 128 ? 16 : 8;  // 64 dims take half a warp a row; 8 warps share a tile of 256
template <DType kType, int kDim, int kRows>
FULMEN_FN void turn_keys(uint32_t tile, int first, const AttendSm80Params& params, int32_t key, int lane) {
  constexpr int kChain = kRows < kLongestChain<kDim> ? kRows : kLongestChain<kDim>, kChains = kRows / kChain;
  if (params.rotary_dim % 4 != 0) {
    turn_odd_rows<kType, kDim>(
        tile, first, first + kRows, params, [&](int r) { return key + r - first; }, lane);
    return;
  }
  const int words = params.rotary_dim / 4;
  const bool two = kChains > 1 && words <= 16;
#pragma unroll 1
  for (int word = two ? lane & 15 : lane; word < words; word += 32) {
    Rotation one[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) one[k] = rotation_of(turn_of(1, params.rope_step[2 * word + k]));
#pragma unroll 1
    for (int chain = two ? lane >> 4 : 0; chain < kChains; chain += two ? 2 : 1) {
      const int row = first + chain * kChain, chain_key = key + chain * kChain;
      if (params.rope_interleaved != 0) {
        turn_chain<kType, kDim, kChain, true>(tile, row, params, chain_key, word, one, two && lane >= 16);
      } else {
        turn_chain<kType, kDim, kChain, false>(tile, row, params, chain_key, word, one, two && lane >= 16);
      }
    }
  }
}

// The first num_rows rows of a decode item, turned, as a tile; the others are zeros. Lane 4 g holds rows g and g + 8.
template <AttendSm80Config kC>
FULMEN_FN void load_turned_rows(unsigned char* tile, const AttendSm80Params& params, const AttendRow (&rows)[2],
                                const VariantRow (&variant_rows)[2], int num_rows, int lane) {
  constexpr int kChunks = kC.max_dim() / 8, kEach = 16 * kChunks / 32, kUnroll = 4;
  const auto of_row = [&](int r, auto low, auto high) {
    const auto a = __shfl_sync(kFullMask, low, 4 * (r & 7)), b = __shfl_sync(kFullMask, high, 4 * (r & 7));
    return r < 8 ? a : b;
  };
#pragma unroll kUnroll
  for (int i = 0; i < kEach; ++i) {
    const int r = (lane + 32 * i) / kChunks, chunk = (lane + 32 * i) % kChunks;
    const auto token = of_row(r, rows[0].token, rows[1].token);
    const auto head = of_row(r, rows[0].head, rows[1].head);
    ptx::Words4 words{0, 0, 0, 0};
    if (token >= 0 && 8 * chunk < params.head_dim_qk) {
      const uint16_t* from =
          static_cast<const uint16_t*>(params.q) + token * params.q_stride_row + head * params.q_stride_head + 8 * chunk;
      if constexpr (kC.general) {
        words = gather_8(from);
      } else {
        words = ptx::load_16(from);
      }
    }
    ptx::put_16(tile + tile_offset<kC.max_dim()>(r, chunk), words);
  }
  __syncwarp();
  turn_queries<kC.dtype, kC.max_dim()>(
      ptx::shared_address(tile), 0, num_rows, params,
      [&](int r) { return of_row(r, variant_rows[0].position, variant_rows[1].position); }, lane);
  __syncwarp();
}

// ------------------------------------------------------------------------------------------------ scores

// What stands for a score that a row doesn't see.
template <AttendSm80Config kC>
FULMEN_FN float hidden_score() {
  return kC.variants.no_softmax ? 0.0f : -infinity();
}

template <class User>
FULMEN_FN float user_logit(const AttendSm80Params& params, const VariantAt& at, float x, float hidden) {
  using Params = typename User::Params;
  static_assert(sizeof(Params) <= AttentionParams::kVariantBytes && alignof(Params) <= 16, "Params of a user's variant: at most 256 bytes");
  if (!user_params_fit<User>(params)) return quiet_nan();
  const Params& p = *reinterpret_cast<const Params*>(params.variant);
  if constexpr (requires { User::logit(p, at, x); }) x = User::logit(p, at, x);
  if constexpr (requires { User::visible(p, at); }) x = User::visible(p, at) ? x : hidden;
  return x;
}

// q.k -> logits in units of log2 (without softmax: plain logits).
template <AttendSm80Config kC, int kTiles>
FULMEN_FN void make_logits(float (&s)[kTiles][4], const AttendSm80Params& params, const VariantRow (&rows)[2], int first_key,
                           int lane) {
  if constexpr (!kC.makes_logits()) return;
  const SoftCap::Params soft_cap{params.logits_soft_cap, ptx::rcp_approx(params.logits_soft_cap)};
  const int lane_key = first_key + 2 * (lane & 3);
  const float distance[2] = {static_cast<float>(lane_key - rows[0].position), static_cast<float>(lane_key - rows[1].position)};
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const VariantRow& row = rows[i >> 1];
      const int step = 8 * j + (i & 1);
      const At<float> at{distance[i >> 1] + static_cast<float>(step), 0};
      float x = s[j][i] * params.sm_scale;
      if constexpr (kC.variants.soft_cap) x = SoftCap::logit(soft_cap, at, x);
      if constexpr (kC.variants.alibi) x = Alibi::logit(Alibi::Params{&row.slope}, at, x);
      if constexpr (kC.variants.user) {
        x = user_logit<UserVariant<kC.variants.user>>(params, {lane_key + step, row.position, row.head}, x, hidden_score<kC>());
      }
      s[j][i] = kC.variants.no_softmax ? x : x * kLog2e;
    }
  }
}

// Hides the keys whose bits are 0, of bits that begin at the tile's first key.
template <AttendSm80Config kC, int kTiles>
FULMEN_FN void hide_scores(float (&s)[kTiles][4], int h, uint64_t bits, float hidden, int lane) {
  bits >>= 2 * (lane & 3);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if ((bits >> (8 * j + i) & 1) == 0) s[j][2 * h + i] = hidden;
    }
  }
}

// Logits and the custom mask.
template <AttendSm80Config kC, int kTiles>
FULMEN_FN void vary_scores(float (&s)[kTiles][4], const AttendSm80Params& params, const VariantRow (&rows)[2], int first_key,
                           int lane) {
  make_logits<kC>(s, params, rows, first_key, lane);
  if constexpr (kC.variants.custom_mask) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool missing = rows[h].mask_end < 0;  // its row becomes NaN
      const uint64_t bits = missing ? 0 : CustomMask::word(params.mask, rows[h].mask_bit, first_key, rows[h].mask_end);
      hide_scores<kC>(s, h, bits, missing ? quiet_nan() : hidden_score<kC>(), lane);
    }
  }
}

// Scores -> weights; the state's maximum, sum and output follow. Without softmax m = 0 says that nothing shrinks.
template <AttendSm80Config kC, int kM, int kTiles>
FULMEN_FN void weigh_scores(float (&s)[kM][kTiles][4], RowState<kC.head_dim_vo> (&state)[kM], float (&top)[kM][2],
                            float scale_log2) {
  if constexpr (kC.variants.no_softmax) {
#pragma unroll
    for (int m = 0; m < kM; ++m) state[m].m[0] = state[m].m[1] = 0.0f;
  } else {
    softmax_step(s, state, top, scale_log2);
  }
}
template <AttendSm80Config kC, int kM, int kTiles>
FULMEN_FN void weigh_scores(float (&s)[kM][kTiles][4], RowState<kC.head_dim_vo> (&state)[kM], float scale_log2) {
  float top[kM][2];
  lane_maxima(top, s);
  weigh_scores<kC>(s, state, top, scale_log2);
}

// ------------------------------------------------------------------------------------------------ ends of rows

FULMEN_FN float inverse_sum(float l) { return l == 0.0f ? 0.0f : __fdividef(1.0f, l); }

// What the output of a whole row is multiplied by, and its m and l with what joins after the last key.
struct RowEnd {
  float scale, m, l;
};
template <AttendSm80Config kC>
FULMEN_FN RowEnd end_row(const AttendSm80Params& params, int head, float m, float l) {
  if constexpr (kC.variants.no_softmax) {
    return {l == 0.0f ? params.o_scale : quiet_nan(), m, l};  // l is 0, or NaN where something is wrong with the row's keys
  } else if constexpr (kC.variants.sinks) {
    const Sinks::Joined all = Sinks::join(params.sinks[head] * kLog2e, m, l, [](float x) { return ptx::ex2_approx(x); });
    return {all.factor * inverse_sum(all.l) * params.o_scale, all.m, all.l};
  } else {
    return {inverse_sum(l) * params.o_scale, m, l};
  }
}

}  // namespace fulmen
