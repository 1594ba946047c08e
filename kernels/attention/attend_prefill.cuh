// Prefill tiles of attend_sm80: every warp owns rows, all warps read each K and V tile of the block's ring.
#pragma once

#include <kernels/attention/attend_join.cuh>
#include <kernels/attention/attend_prefill_copies.cuh>
#include <kernels/attention/attend_steps.cuh>
#include <kernels/attention/attend_variants.cuh>
#include <kernels/ptx/cp_async.cuh>

namespace fulmen {

template <AttendSm80Config kC>
FULMEN_FN void load_rows(const AttendSm80Params& params, const PlanView& plan, const AttendItem& item,
                         const AttendSmem<kC>& smem) {
  for (int r = threadIdx.x; r < kC.tile_q(); r += kC.num_threads()) {
    smem.rows()[r] = make_row(params, plan, item, r);
    if constexpr (kC.variants.read_rows()) {
      smem.variant_rows()[r] = make_variant_row<kC>(params, plan, item, smem.rows()[r]);
    }
  }
}

// Rows that aren't there are zeros.
template <AttendSm80Config kC>
FULMEN_FN void load_q(const AttendSm80Params& params, const AttendSmem<kC>& smem) {
  constexpr int kChunks = kC.head_dim_qk / 8, kStep = kC.num_threads() / kChunks;  // rows side by side
  constexpr int kAtOnce = 4;
  static_assert(kC.tile_q() % (kAtOnce * kStep) == 0, "whole passes");
  const int chunk = threadIdx.x % kChunks;
  const uint32_t tile = ptx::shared_address(smem.q());
#pragma unroll 1  // unrolled, its addresses would spill what the main loop needs
  for (int first = threadIdx.x / kChunks; first < kC.tile_q(); first += kAtOnce * kStep) {
    AttendRow rows[kAtOnce];  // read first: the compiler must not move loads across copies
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) rows[k] = smem.rows()[first + k * kStep];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int r = first + k * kStep;
      const bool zero = rows[k].token < 0 || 8 * chunk >= params.head_dim_qk;
      const int64_t offset = zero ? 0 : rows[k].token * params.q_stride_row + rows[k].head * params.q_stride_head + 8 * chunk;
      const uint16_t* from = static_cast<const uint16_t*>(params.q) + offset;
      if constexpr (kC.general) {
        const ptx::Words4 words = zero ? ptx::Words4{0, 0, 0, 0} : gather_8(from);
        *reinterpret_cast<ptx::Words4*>(smem.q() + tile_offset<kC.max_dim()>(r, chunk)) = words;
      } else {
        ptx::cp_async_16(tile + tile_offset<kC.max_dim()>(r, chunk), from, zero);
      }
    }
  }
}

template <AttendSm80Config kC>
FULMEN_FN WarpView view_of_warp(const AttendSmem<kC>& smem, int warp, int lane) {
  WarpView v{-(1 << 30), 1 << 30, 1 << 30, -(1 << 30)};
  if (lane < kC.warp_rows) {
    const AttendRow row = smem.rows()[warp * kC.warp_rows + lane];
    if (row.token >= 0) v = {row.lo, row.hi, row.lo, row.hi};
    if (row.token >= 0 && row.hi <= row.lo) v.any_lo = 1 << 30, v.any_hi = -(1 << 30);
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) {
    v.all_lo = max(v.all_lo, __shfl_xor_sync(0xffffffffu, v.all_lo, mask));
    v.all_hi = min(v.all_hi, __shfl_xor_sync(0xffffffffu, v.all_hi, mask));
    v.any_lo = min(v.any_lo, __shfl_xor_sync(0xffffffffu, v.any_lo, mask));
    v.any_hi = max(v.any_hi, __shfl_xor_sync(0xffffffffu, v.any_hi, mask));
  }
  return v;
}

// The custom mask of the warp's rows, 64 keys at a time: each lane of a quad fetches the bits of one of the quad's rows, 64 keys
// ahead of their use. A row whose mask is missing sees nothing, and becomes NaN at its end.
template <AttendSm80Config kC>
struct MaskAhead {
  uint64_t bits, next;

  FULMEN_FN uint64_t fetch(const AttendSm80Params& params, const AttendSmem<kC>& smem, int first_key, int warp, int lane) const {
    const int slot = lane & (kC.warp_rows / 8 - 1);
    const VariantRow& row = smem.variant_rows()[warp * kC.warp_rows + 8 * slot + (lane >> 2)];
    return row.mask_end < 0 ? 0 : CustomMask::word(params.mask, row.mask_bit, first_key, row.mask_end);
  }
  // To the 64 keys that `key` is one of, the warp's first or those behind the last ones.
  FULMEN_FN void advance(const AttendSm80Params& params, const AttendSmem<kC>& smem, bool is_first, int key, int warp, int lane) {
    if (!is_first && key % 64 != 0) return;
    bits = is_first ? fetch(params, smem, key & ~63, warp, lane) : next;
    next = fetch(params, smem, (key & ~63) + 64, warp, lane);
  }
  template <int kTiles>
  FULMEN_FN void hide(float (&s)[kTiles][4], int m, int first_key, int lane) const {
    using Bits = Choose<(kTiles <= 4), uint32_t, uint64_t>;
    const Bits mine = static_cast<Bits>(bits >> (first_key & 63));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      hide_scores<kC>(s, h, __shfl_sync(0xffffffffu, mine, (lane & ~3) | (2 * m + h)), hidden_score<kC>(), lane);
    }
  }
};

// What variants and the bounds of the rows make of the scores of keys first_key and on.
template <AttendSm80Config kC, int kTiles>
FULMEN_FN void bound_scores(float (&s)[kC.warp_rows / 16][kTiles][4], const AttendSm80Params& params,
                            const AttendSmem<kC>& smem, int first_key, bool masked, const MaskAhead<kC>& mask, int warp,
                            int lane) {
#pragma unroll
  for (int m = 0; m < kC.warp_rows / 16; ++m) {
    const int row = warp * kC.warp_rows + 16 * m + (lane >> 2);
    if constexpr (kC.variants.read_rows()) {
      make_logits<kC>(s[m], params, {smem.variant_rows()[row], smem.variant_rows()[row + 8]}, first_key, lane);
      if constexpr (kC.variants.custom_mask) mask.hide(s[m], m, first_key, lane);
    } else {
      make_logits<kC>(s[m], params, {}, first_key, lane);
    }
    if (masked) {
      const AttendRow& low = smem.rows()[row];
      const AttendRow& high = smem.rows()[row + 8];
      const int lo[2] = {low.lo - first_key, high.lo - first_key}, hi[2] = {low.hi - first_key, high.hi - first_key};
      mask_scores(s[m], lo, hi, lane, hidden_score<kC>());
    }
  }
}

// One K/V tile against the warp's rows. between(i) comes before the products of dims 16 i and on of Q and K.
template <AttendSm80Config kC, class Between>
FULMEN_FN void attend_kv_tile(RowState<kC.head_dim_vo> (&state)[kC.warp_rows / 16], uint32_t q_tile, uint32_t k_tile,
                              uint32_t v_tile, const AttendSm80Params& params, const AttendSmem<kC>& smem, int first_key,
                              const WarpView& view, const MaskAhead<kC>& mask, float scale, int warp, int lane,
                              Between& between) {
  constexpr int kM = kC.warp_rows / 16, kTiles = kC.step_keys / 8;
  const int at = kC.canonical && kC.head_dim_vo > 128 ? ptx::unknown(lane) : lane;
  const uint32_t q_lane = q_tile + lane_a<kC.max_dim()>(warp * kC.warp_rows, at);
  const uint32_t k_lane = k_tile + lane_b_rows<kC.head_dim_qk>(at), v_lane = v_tile + lane_b_cols<kC.head_dim_vo>(at);
  float s[kM][kTiles][4];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) s[m][j][0] = s[m][j][1] = s[m][j][2] = s[m][j][3] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < kC.head_dim_qk / 16; ++step) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) ptx::ldmatrix_x4(a[m], (q_lane ^ step << 5) + 16 * m * kC.max_dim() * 2);
    uint32_t b[kTiles / 2][4];
#pragma unroll
    for (int jj = 0; jj < kTiles / 2; ++jj) ptx::ldmatrix_x4(b[jj], (k_lane ^ step << 5) + 16 * jj * kC.head_dim_qk * 2);
    between(step);  // before the products, so that the next fragments can be loaded under these
#pragma unroll
    for (int jj = 0; jj < kTiles / 2; ++jj) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        mma<kC.dtype>(s[m][2 * jj], a[m], b[jj][0], b[jj][1]);
        mma<kC.dtype>(s[m][2 * jj + 1], a[m], b[jj][2], b[jj][3]);
      }
    }
  }
  float top[kM][2];
  lane_maxima(top, s);  // under the last products
  const bool masked = first_key < view.all_lo || first_key + kC.step_keys > view.all_hi;
  if (kC.makes_logits() || kC.variants.custom_mask || masked) {
    bound_scores<kC>(s, params, smem, first_key, masked, mask, warp, lane);
    lane_maxima(top, s);
  }
  weigh_scores<kC>(s, state, top, scale);
#pragma unroll
  for (int kk = 0; kk < kTiles / 2; ++kk) {
    uint32_t p[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) probabilities<kC.dtype>(p[m], s[m], kk);
#pragma unroll
    for (int pair = 0; pair < kC.head_dim_vo / 16; ++pair) {
      uint32_t b[4];
      ptx::ldmatrix_x4_trans(b, (v_lane ^ pair << 5) + 16 * kk * kC.head_dim_vo * 2);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        mma<kC.dtype>(state[m].o[2 * pair], p[m], b[0], b[1]);
        mma<kC.dtype>(state[m].o[2 * pair + 1], p[m], b[2], b[3]);
      }
    }
  }
}

// Finished rows to o. 16-bit outputs pass through the warp's part of Q's tile, so that stores are 16 bytes wide.
template <AttendSm80Config kC>
FULMEN_FN void store_rows(const AttendSm80Params& params, RowState<kC.head_dim_vo> (&state)[kC.warp_rows / 16],
                          const AttendSmem<kC>& smem, int warp, int lane) {
  constexpr int kM = kC.warp_rows / 16;
  const uint32_t first = warp * kC.warp_rows;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = first + 16 * m + 8 * h + (lane >> 2);
      const AttendRow row = smem.rows()[r];
      const RowEnd end = end_row<kC>(params, row.head, state[m].m[h], state[m].l[h]);
      if ((lane & 3) == 0 && row.token >= 0) store_lse<kC>(params, row, end.m, end.l);
#pragma unroll
      for (int j = 0; j < kC.head_dim_vo / 8; ++j) {
        const float a = finished<kC.canonical>(state[m].o[j][2 * h] * end.scale);
        const float b = finished<kC.canonical>(state[m].o[j][2 * h + 1] * end.scale);
        if constexpr (kC.o_dtype == DType::f32) {
          if (row.token >= 0 && 8 * j < params.head_dim_vo)
            store_pair<kC>(output_row<DType::f32>(params, row), 8 * j + 2 * (lane & 3), a, b);
        } else {
          *reinterpret_cast<uint32_t*>(smem.q() + tile_offset<kC.max_dim()>(r, j) + 4 * (lane & 3)) =
              pack<kC.o_dtype>(a, b);
        }
      }
    }
  }
  if constexpr (kC.o_dtype != DType::f32) {
    constexpr int kChunks = kC.head_dim_vo / 8;
    __syncwarp();
    for (int i = lane; i < kC.warp_rows * kChunks; i += 32) {
      const int r = first + i / kChunks, chunk = i % kChunks;
      const AttendRow row = smem.rows()[r];
      if (row.token < 0 || 8 * chunk >= params.head_dim_vo) continue;
      const ptx::Words4 words = *reinterpret_cast<const ptx::Words4*>(smem.q() + tile_offset<kC.max_dim()>(r, chunk));
      uint16_t* out = static_cast<uint16_t*>(output_row<kC.o_dtype>(params, row)) + 8 * chunk;
      if constexpr (kC.general) {
        scatter_8(out, words);
      } else {
        *reinterpret_cast<ptx::Words4*>(out) = words;
      }
    }
  }
}

// Unfinished rows to a slot.
template <AttendSm80Config kC>
FULMEN_FN void store_slot(const Slot& slot, RowState<kC.head_dim_vo> (&state)[kC.warp_rows / 16], int num_rows,
                          int head_dim, int warp, int lane) {
#pragma unroll
  for (int m = 0; m < kC.warp_rows / 16; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = warp * kC.warp_rows + 16 * m + 8 * h + (lane >> 2);
      if (r >= num_rows) continue;
      if ((lane & 3) == 0) slot.m[r] = state[m].m[h], slot.l[r] = state[m].l[h];
#pragma unroll
      for (int j = 0; j < kC.head_dim_vo / 8; ++j) {
        if (8 * j >= head_dim) continue;
        *reinterpret_cast<float2*>(slot.o + r * slot.stride + 8 * j + 2 * (lane & 3)) =
            float2{state[m].o[j][2 * h], state[m].o[j][2 * h + 1]};
      }
    }
  }
}

// Canon: what becomes of the rows' states at the end of each chunk. Each thread keeps its registers on a stack of its own.
template <AttendSm80Config kC>
struct ChunkFold {
  static constexpr int kM = kC.warp_rows / 16, kVectors = kC.head_dim_vo / 8 + 1;  // of a 16-row tile and thread
  using States = RowState<kC.head_dim_vo>[kM];
  const AttendSm80Params& params;
  const PrefillItem& work;

  struct Node {
    int32_t index, begin, end;
  };
  // The node of the piece that holds a chunk: found anew for each chunk, since registers are scarcer than time.
  FULMEN_FN Node node_of(int32_t chunk) const {
    const Piece& p = work.item.piece;
    const int32_t first = tree_first(p.segment, p.tile), last = tree_last(p.segment, p.tile);
    Node node{0, p.unit_begin, canon::node_end(p.unit_begin, p.unit_end, first, last)};
#pragma unroll 1
    while (node.end <= chunk && node.end < p.unit_end) {
      node = {node.index + 1, node.end, canon::node_end(node.end, p.unit_end, first, last)};
    }
    return node;
  }
  FULMEN_FN float4* entry(int depth) const {
    return reinterpret_cast<float4*>(stack_of_block(params) + depth * params.layout.stack_floats) + threadIdx.x;
  }
  FULMEN_FN void push(const States& state, int depth) const {
    float4* to = entry(depth);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int j = 0; j < kVectors - 1; ++j) {
        const float(&o)[4] = state[m].o[j];
        to[(m * kVectors + j) * kC.num_threads()] = float4{o[0], o[1], o[2], o[3]};
      }
      to[(m * kVectors + kVectors - 1) * kC.num_threads()] = float4{state[m].m[0], state[m].m[1], state[m].l[0], state[m].l[1]};
    }
  }
  FULMEN_FN void join(States& state, int depth) const {
    const float4* from = entry(depth);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const float4 sums = from[(m * kVectors + kVectors - 1) * kC.num_threads()];
      const canon::JoinFactors by[2] = {join_factors(sums.x, state[m].m[0]), join_factors(sums.y, state[m].m[1])};
#pragma unroll
      for (int j = 0; j < kVectors - 1; ++j) {
        const float4 a = from[(m * kVectors + j) * kC.num_threads()];
        float(&o)[4] = state[m].o[j];
        o[0] = join_values(by[0], a.x, o[0]), o[1] = join_values(by[0], a.y, o[1]);
        o[2] = join_values(by[1], a.z, o[2]), o[3] = join_values(by[1], a.w, o[3]);
        if (kC.head_dim_vo > 128 && j % 4 == 3) __syncwarp();  // more loads at a time would spill
      }
      state[m].l[0] = join_values(by[0], sums.z, state[m].l[0]);
      state[m].l[1] = join_values(by[1], sums.w, state[m].l[1]);
      state[m].m[0] = by[0].m, state[m].m[1] = by[1].m;
    }
  }

  // The piece's last node stays in the registers; else they are free.
  FULMEN_FN void end_chunk(States& state, int32_t chunk, int warp, int lane) const {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) state[m].l[h] = quad_sum(state[m].l[h]);
    }
    const Node node = node_of(chunk);
    const canon::FoldStep step = canon::fold_step(node.begin, chunk, chunk + 1, node.end);
#pragma unroll 1
    for (int i = 1; i <= step.joins; ++i) join(state, step.depth - i);
    if (chunk + 1 == work.item.piece.unit_end) return;
    if (chunk + 1 < node.end) {
      push(state, step.depth - step.joins);
    } else {
      store_slot<kC>(work.slot.node(node.index), state, work.item.piece.tile.num_rows, params.head_dim_vo, warp, lane);
    }
  }
};

// A whole tile's segment on level 0, and the tile's number in it.
struct PlacedTile {
  int32_t segment, index;
};
// By a warp: 32 places of the prefix sums at a time.
FULMEN_FN PlacedTile place_tile(const int64_t* prefix, int32_t segments, int64_t ordinal, int lane) {
  int32_t low = 0, count = segments;  // one of [low, low + count)
  int64_t begin = 0;
#pragma unroll 1
  while (count > 1) {
    const int32_t step = (count + 31) >> 5, at = lane * step;
    const int64_t mine = at < count ? prefix[low + at] : ordinal + 1;
    const int found = 31 - __clz(static_cast<int32_t>(__ballot_sync(0xffffffffu, mine <= ordinal)));
    begin = __shfl_sync(0xffffffffu, mine, found);
    low += found * step;
    count = min(step, count - found * step);
  }
  return {low, static_cast<int32_t>(ordinal - begin)};
}

// Where the whole tile stands that the block takes next, by warp 0.
FULMEN_FN void place_next_tile(const AttendSm80Params& params, const PlanView& plan, PrefillItem& work, int lane) {
  if (work.ordinal >= work.whole_tiles) return;
  const PlacedTile place = place_tile(plan.tile_prefix(params.group, 0), work.segments, work.ordinal, lane);
  if (lane != 0) return;
  work.next_index = place.index;
  work.next_segment = load_segment(params.shape, plan, 0, place.segment);
}

template <AttendSm80Config kC>
FULMEN_FN void attend_prefill_item(const AttendSm80Params& params, const PlanView& plan, PrefillItem& work,
                                   const AttendSmem<kC>& smem) {
  constexpr int kM = kC.warp_rows / 16;
  static_assert(kC.stages == 2, "places and tiles change hands by parity");
  constexpr int kKBytes = kC.step_keys * kC.head_dim_qk * 2, kVBytes = kC.step_keys * kC.head_dim_vo * 2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t q_tile = ptx::shared_address(smem.q()), ring = ptx::shared_address(smem.ring());
  const int32_t begin = work.item.key_begin & ~(kC.step_keys - 1);
  const Choose<kC.variants.no_softmax, const int32_t&, const int32_t> end = work.item.key_end;  // where registers would not do
  int32_t* bad = smem.flags() + kFlagBadPage;
  const auto tile_of = [&](int32_t first) { return ring + (first / kC.step_keys & 1) * (kKBytes + kVBytes); };
  KeyPlaces<kC> keys(params, work, smem.places(0));
  const auto copy = [&](int32_t first) {
    copy_tile<kC, kC.head_dim_qk>(smem, tile_of(first), params, params.k, keys, first, false, params.head_dim_qk);
    copy_tile<kC, kC.head_dim_vo>(smem, tile_of(first) + kKBytes, params, params.v, keys, first, true, params.head_dim_vo);
    ptx::cp_async_commit();
  };

  // Rows, the first span's places; then Q and the first tile on their way. What comes from far away is asked for first.
  const int32_t first_span = begin & ~(keys.span() - 1);
  const bool takes = threadIdx.x == 0 && work.whole_tiles > 0;
  uint32_t taken = 0;
  if (takes) taken = ptx::atomic_add_relaxed_gpu(&params.counters->next_tile, 1);
  keys.fetch(first_span);
  load_rows(params, plan, work.item, smem);
  keys.place(first_span, bad);
  keys.fetch(first_span + keys.span());
  if (takes) work.ordinal = gridDim.x + static_cast<int64_t>(taken);
  __syncthreads();
  load_q(params, smem);
  copy(begin);
  if constexpr (!kC.levels) {
    if (warp == 0) place_next_tile(params, plan, work, lane);  // while they are on their way
  }

  WarpView& view = smem.views()[warp];  // registers are scarcer than loads
  {
    const WarpView seen = view_of_warp(smem, warp, lane);
    if (lane == 0) view = seen;
    __syncwarp();
  }
  const float scale = kC.makes_logits() ? 1.0f : params.sm_scale * kLog2e;
  const ChunkFold<kC> chunks{params, work};
  RowState<kC.head_dim_vo> state[kM];
  if (!kC.canonical || begin >= end) {
#pragma unroll
    for (int m = 0; m < kM; ++m) state[m].clear();
  }

  MaskAhead<kC> mask;
  bool is_first = true;  // of the warp's tiles
  for (int32_t first = begin; first < end;) {
    if constexpr (kC.canonical) {
#pragma unroll
      for (int m = 0; m < kM; ++m) state[m].clear();
    }
    do {  // a chunk; without the canon all keys are one
      const int32_t next = first + kC.step_keys;
      if ((next & (keys.span() - 1)) == 0) {
        keys.place(next, bad);
        keys.fetch(next + keys.span());
      }
      const bool seen = first < view.any_hi && next > view.any_lo;
      // The next tile is copied between products, where it lies evenly.
      const bool between = CopiesBetween<kC>::kPossible && seen && next + kC.step_keys <= work.item.key_end && keys.group_log2() != 0;
      const int32_t next_slot = keys.slot(next);
      ptx::cp_async_wait<0>();
      __syncthreads();  // tile `first` and the next tile's places are there for all; the other stage is free
      if (!between && next < end) copy(next);
      if constexpr (kC.variants.rope) {
        if (first == begin) {
          turn_queries<kC.dtype, kC.max_dim()>(
              q_tile, warp * kC.warp_rows, (warp + 1) * kC.warp_rows, params,
              [&](int r) { return smem.variant_rows()[r].position; }, lane);
        }
        constexpr int kRows = kC.step_keys / kC.warps;
        static_assert(!kC.canonical || kRows % kLongestChain<kC.head_dim_qk> == 0, "whole chains");
        turn_keys<kC.dtype, kC.head_dim_qk, kRows>(tile_of(first), warp * kRows, params, first + warp * kRows, lane);
        __syncthreads();  // Q and K are turned for all
      }
      if (seen) {
        if constexpr (kC.variants.custom_mask) mask.advance(params, smem, is_first, first, warp, lane);
        is_first = false;
        CopiesBetween<kC> copies{params, keys, between, next_slot, tile_of(next), tile_of(next) + kKBytes};
        attend_kv_tile<kC>(state, q_tile, tile_of(first), tile_of(first) + kKBytes, params, smem, first, view, mask, scale, warp,
                           lane, copies);
        ptx::cp_async_commit();
      }
      first = next;
    } while (first < end && (!kC.canonical || first % canon::kChunkKeys != 0));
    if constexpr (kC.canonical) chunks.end_chunk(state, (first - 1) >> canon::kChunkLog2, warp, lane);
  }

  if constexpr (!kC.canonical) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) state[m].l[h] = quad_sum(state[m].l[h]);
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
  if (*bad || !work.item.piece.segment.valid) {
#pragma unroll
    for (int m = 0; m < kM; ++m) state[m].l[0] = state[m].l[1] = quiet_nan();
  }
  if constexpr (kC.variants.custom_mask) {
#pragma unroll
    for (int i = 0; i < 2 * kM; ++i) {
      const int r = warp * kC.warp_rows + 8 * i + (lane >> 2);
      const AttendRow& row = smem.rows()[r];
      if (smem.variant_rows()[r].mask_end < 0 && row.hi > row.lo) state[i / 2].l[i % 2] = quiet_nan();
    }
  }
  if (!work.slot.exists()) {
    store_rows<kC>(params, state, smem, warp, lane);
  } else {
    const int32_t node = kC.canonical ? chunks.node_of(work.item.piece.unit_end - 1).index : 0;
    store_slot<kC>(work.slot.node(node), state, work.item.piece.tile.num_rows, params.head_dim_vo,
                   warp, lane);
    finish_piece<kC>(params, plan, work.item, smem);
  }
  __syncthreads();  // the next item writes rows, places and Q
}

// The next item of a prefill block, into shared memory, by thread 0. Of whole tiles the first is the block's number, the
// others come from the counter.
template <AttendSm80Config kC>
FULMEN_FN bool next_prefill_item(const AttendSm80Params& params, const PlanView& plan, PieceCursor& cursor, PrefillItem& work) {
  const int64_t tiles = kC.levels ? 0 : work.whole_tiles;
  if (tiles > 0 && work.ordinal >= tiles) return false;
  AttendItem item;  // in registers, as the cursor: in shared memory each of their words would be waited for
  Piece& piece = item.piece;
  KeyMap map;
  if (tiles > 0) {
    piece.segment = work.next_segment;
    map = make_key_map(params, piece.segment);  // what it loads comes while the tile is worked out
    piece.tile = tile_by_counter(params.shape, params.group, piece.segment, work.next_index);
    piece.unit_begin = piece.tile.unit_begin;
    piece.unit_end = piece.tile.unit_end;
    piece.starts_tile = piece.ends_tile = true;
  } else {
    PieceCursor moved = cursor;
    if (!moved.next(piece)) return false;
    static_cast<CursorState&>(cursor) = moved;
    map = make_key_map(params, piece.segment);
  }
  map.set_head(params, piece.tile.head);
  bound_keys(params, item);
  const bool even = map.k_list.ragged || params.page_size % 8 == 0;
  work.group_log2 = !kC.general && even && (!kC.levels || segments_begin_at_eighths(plan, piece.segment)) ? 3 : 0;
  work.k_stride = row_vectors(params.k, map), work.v_stride = row_vectors(params.v, map);
  work.slot = slot_of_piece<kC>(params, item);
  work.map = map;
  work.item = item;
  return true;
}

// The block's share of levels [0, end_level).
template <AttendSm80Config kC>
FULMEN_FN void attend_prefill(const AttendSm80Params& params, const PlanView& plan, const AttendSmem<kC>& smem,
                              int32_t end_level) {
  auto& cursor = *reinterpret_cast<PieceCursor*>(smem.queue());
  auto& work = *reinterpret_cast<PrefillItem*>(smem.queue() + 512);
  static_assert(sizeof(PieceCursor) <= 512 && 512 + sizeof(PrefillItem) <= kC.queue_bytes(), "queue_bytes");
  if (threadIdx.x == 0) {
    work.whole_tiles = take_whole_tiles(params.shape, plan, params.group) ? plan.header->level_tiles[params.group][1] : 0;
    work.segments = plan.header->num_segments[0];
    work.ordinal = blockIdx.x;
    new (&cursor) PieceCursor(params.shape, plan, params.group, blockIdx.x, 0, end_level);
  }
  __syncwarp();
  if constexpr (!kC.levels) {
    if (threadIdx.x < 32) place_next_tile(params, plan, work, threadIdx.x);
  }
  for (;;) {
    if (threadIdx.x == 0) {
      smem.flags()[kFlagBadPage] = 0;
      smem.flags()[kFlagMore] = next_prefill_item<kC>(params, plan, cursor, work);
    }
    __syncthreads();
    if (!smem.flags()[kFlagMore]) break;
    attend_prefill_item<kC>(params, plan, work, smem);
  }
  if (!kC.levels && threadIdx.x == 0 && work.whole_tiles > 0 && ptx::atomic_add_acq_rel_gpu(&params.counters->exits, 1) == gridDim.x - 1) {
    params.counters->next_tile = 0;  // all have taken their last tile (acquired: plain stores beside their atomics)
    params.counters->exits = 0;
  }
}

}  // namespace fulmen
