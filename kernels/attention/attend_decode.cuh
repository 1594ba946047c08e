// Decode tiles of attend_sm80: all warps hold the same 16 rows, each walks keys of its own through a ring of its own.
#pragma once

#include <kernels/attention/attend_copies.cuh>
#include <kernels/attention/attend_join.cuh>
#include <kernels/attention/attend_queue.cuh>
#include <kernels/attention/attend_steps.cuh>
#include <kernels/attention/attend_variants.cuh>
#include <kernels/ptx/cp_async.cuh>

namespace fulmen {

// The copying half of a warp: issues half steps (a tile of K, then the same keys' V), each a group of its own.
template <AttendSm80Config kC>
struct WarpCopies {
  static constexpr int kOwn = kC.step_keys / 32;  // keys whose pages a lane looks up
  static constexpr uint32_t kSlotBytes = kC.step_keys * kC.max_dim() * 2;
  const AttendSm80Params& params;
  const PlanView& plan;
  WarpQueue<kC>& queue;
  const AttendSmem<kC>& smem;
  uint32_t* places;
  uint32_t ring;
  int warp, lane;
  int item = -1;        // index of the item being copied
  int32_t at = 0;       // first key of the step being copied
  bool values = false;  // the next half step is V
  int issued = 0;       // half steps so far
  int slot = 0;         // of the ring: issued mod stages
  KeyPages pages[kOwn];

  FULMEN_FN WarpCopies(const AttendSm80Params& params_, const PlanView& plan_, WarpQueue<kC>& queue_,
                       const AttendSmem<kC>& smem_, uint32_t ring_, int warp_, int lane_)
      : params(params_), plan(plan_), queue(queue_), smem(smem_), places(smem_.places(warp_)), ring(ring_), warp(warp_), lane(lane_) {}

  // On to the next item; the pages of its first step are fetched.
  FULMEN_FN void enter() {
    next_warp_item<kC>(params, queue, ++item, warp, lane);
    at = queue.at(item).first;
    fetch(at);
  }
  // By the canon steps begin at whole blocks, the first of them maybe before the item.
  FULMEN_FN bool holds(const WarpItem& w, int32_t key) const {
    return key < w.last && (!kC.canonical || key >= w.item.key_begin);
  }
  FULMEN_FN void fetch(int32_t first) {
    const WarpItem& w = queue.at(item);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int32_t key = first + lane + 32 * i;
      if (holds(w, key) && (!kC.levels || key >= w.map.key_begin)) pages[i] = load_pages(params, w.map, key);
    }
  }
  FULMEN_FN void place() {
    WarpItem& w = queue.at(item);
    bool bad = false;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int32_t key = at + lane + 32 * i;
      KeyPlace where{kNoPlace, kNoPlace};
      if (holds(w, key)) {
        where = place_any_key<kC.levels, kC.general>(params, w.map, key, pages[i]);
        if (where.k == kNoPlace) {
          report_page_fault(params, w.item, key);
          bad = true;
        }
      }
      places[lane + 32 * i] = where.k;
      places[kC.step_keys + lane + 32 * i] = where.v;
    }
    if (bad) atomicExch(&w.bad_page, 1);
    __syncwarp();
  }

  // Issues what fits: `read` half steps have been read by the whole warp, the arithmetic is at item `reader`, which
  // is in the queue afterwards.
  FULMEN_FN void fill(int read, int reader) {
    __syncwarp();  // all lanes have read half step read - 1
    while (issued < read + kC.stages) {
      if (item < 0 || at >= queue.at(item).last) {
        if (item >= 0 && (!queue.at(item).exists || item + 1 >= reader + WarpQueue<kC>::kDepth)) return;
        enter();
        continue;
      }
      const uint32_t tile = ring + slot * kSlotBytes;
      if (!values) {
        place();
        copy_keys<kC, kC.max_dim(), 32>(smem, tile, params, params.k, queue.at(item).item.piece.tile.head, places,
                                        params.head_dim_qk, lane);
        fetch(at + queue.at(item).stride);
      } else {
        copy_keys<kC, kC.max_dim(), 32>(smem, tile, params, params.v, queue.at(item).item.piece.tile.head,
                                        places + kC.step_keys, params.head_dim_vo, lane);
        at += queue.at(item).stride;
        __syncwarp();  // everybody has read the places
      }
      values = !values;
      ptx::cp_async_commit();
      ++issued;
      slot = slot + 1 == kC.stages ? 0 : slot + 1;
    }
  }

  // Half step `read` has landed for the whole warp.
  FULMEN_FN void wait(int read) const {
    if (issued - 1 - read >= kC.stages - 1) {
      ptx::cp_async_wait<kC.stages - 1>();
    } else {
      ptx::cp_async_wait<0>();
    }
    __syncwarp();
  }
};

// Q as A operands, straight from global memory; rows that aren't there are zeros. Up to 128 dims they stay in registers for
// the item, above they are read again (from L1) for every step: beside O they would spill. Turned rows (RoPE) lie in a tile
// of the warp's own instead.
template <AttendSm80Config kC>
struct QueryOperands {
  static constexpr bool kHeld = kC.head_dim_qk <= 128;
  const uint16_t* data[2];  // of the lane's two rows, at its columns; null: no row
  uint32_t turned;          // the tile
  uint32_t held[kHeld ? kC.head_dim_qk / 16 : 1][4];

  FULMEN_FN void set(const AttendSm80Params& params, const AttendRow (&rows)[2], int lane) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      data[h] = rows[h].token < 0 ? nullptr
                                  : static_cast<const uint16_t*>(params.q) + rows[h].token * params.q_stride_row +
                                        rows[h].head * params.q_stride_head + 2 * (lane & 3);
    }
    if constexpr (kHeld) {
#pragma unroll
      for (int step = 0; step < kC.head_dim_qk / 16; ++step) load(held[step], params, step, lane);
    }
  }
  FULMEN_FN void load(uint32_t (&a)[4], const AttendSm80Params& params, int step, int lane) const {
    if constexpr (kC.variants.rope) {
      load_a<kC.max_dim()>(a, turned, 0, step, lane);
      return;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = 16 * step + 8 * half;  // head sizes are multiples of 8
        a[h + 2 * half] = data[h] != nullptr && column < params.head_dim_qk
                              ? load_two<kC.general>(data[h] + column)
                              : 0u;
      }
    }
  }
};

// Scores of a step; keys that aren't there are zeros in the tile. One path for full and short steps: an item that is
// short is bound by fetching instructions.
template <AttendSm80Config kC>
FULMEN_FN void decode_scores(float (&s)[kC.step_keys / 8][4], const AttendSm80Params& params,
                             const QueryOperands<kC>& q, uint32_t k_tile, int lane) {
#pragma unroll
  for (int j = 0; j < kC.step_keys / 8; ++j) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
  // Unrolled in full, the addresses of a long row of Q would spill.
  constexpr int kUnroll = QueryOperands<kC>::kHeld ? kC.head_dim_qk / 16 : 2;
#pragma unroll kUnroll
  for (int step = 0; step < kC.head_dim_qk / 16; ++step) {
    uint32_t a[4];
    if constexpr (QueryOperands<kC>::kHeld) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = q.held[step][i];
    } else {
      q.load(a, params, step, lane);
    }
#pragma unroll
    for (int jj = 0; jj < kC.step_keys / 16; ++jj) {
      uint32_t b[4];
      load_b_rows<kC.max_dim()>(b, k_tile, 16 * jj, step, lane);
      mma<kC.dtype>(s[2 * jj], a, b[0], b[1]);
      mma<kC.dtype>(s[2 * jj + 1], a, b[2], b[3]);
    }
  }
}

template <AttendSm80Config kC>
FULMEN_FN void decode_output(float (&o)[kC.head_dim_vo / 8][4], const float (&s)[kC.step_keys / 8][4], uint32_t v_tile,
                             int lane) {
#pragma unroll
  for (int kk = 0; kk < kC.step_keys / 16; ++kk) {
    uint32_t p[4];
    probabilities<kC.dtype>(p, s, kk);
#pragma unroll
    for (int pair = 0; pair < kC.head_dim_vo / 16; ++pair) {
      uint32_t b[4];
      load_b_cols<kC.max_dim()>(b, v_tile, 16 * kk, pair, lane);
      mma<kC.dtype>(o[2 * pair], p, b[0], b[1]);
      mma<kC.dtype>(o[2 * pair + 1], p, b[2], b[3]);
    }
  }
}

// Canon: the state of a run of chunks along the node's tree, quad `index` of `count`. True if the node is complete: `q` is its.
FULMEN_FN bool fold_run(const AttendSm80Params& params, const WarpItem& w, int index, int count, QuadState& q) {
  const QuadStack stack(params, index, count);
  const canon::FoldStep step = canon::fold_step(w.node_begin, w.begin, w.end, w.node_end);
#pragma unroll 1
  for (int i = 1; i <= step.joins; ++i) q = join_quads(stack.load(step.depth - i), q);
  if (w.end == w.node_end) return true;
  stack.store(step.depth - step.joins, q);
  return false;
}

// A warp's states of an item's rows to shared memory, for the others.
template <AttendSm80Config kC>
FULMEN_FN void put_states(const RowState<kC.head_dim_vo>& state, int num_rows, bool bad, const AttendSmem<kC>& smem, int warp,
                          int lane) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float l = bad ? quiet_nan() : quad_sum(state.l[h]);
    const int r = (lane >> 2) + 8 * h;
    if (r >= num_rows) continue;
    if ((lane & 3) == 0) {
      smem.warp_m()[warp * 16 + r] = state.m[h];
      smem.warp_l()[warp * 16 + r] = l;
    }
    float* out = smem.warp_o(warp) + r * kC.merge_stride() + 2 * (lane & 3);
#pragma unroll
    for (int j = 0; j < kC.head_dim_vo / 8; ++j) {
      *reinterpret_cast<float2*>(out + 8 * j) = float2{state.o[j][2 * h], state.o[j][2 * h + 1]};
    }
  }
}

// The warps' states of one row, four columns.
template <AttendSm80Config kC>
FULMEN_FN QuadState warp_quad(const AttendSmem<kC>& smem, int warp, int row, int column) {
  const ptx::Words4 o = ptx::load_16(smem.warp_o(warp) + row * kC.merge_stride() + column);
  return {smem.warp_m()[warp * 16 + row], smem.warp_l()[warp * 16 + row],
          {bits_float(o.x), bits_float(o.y), bits_float(o.z), bits_float(o.w)}};
}

// Joins what the warps put there, and writes it to the slot, or to o where there is none.
template <AttendSm80Config kC>
FULMEN_FN void sum_warps(const AttendSm80Params& params, const PlanView& plan, const WarpItem& w, const Slot& slot,
                         const AttendSmem<kC>& smem) {
  constexpr int kQuads = kC.head_dim_vo / 4;
#pragma unroll 1
  for (int i = threadIdx.x; i < w.item.piece.tile.num_rows * kQuads; i += kC.num_threads()) {
    const int r = i / kQuads, column = 4 * (i % kQuads);
    if (column >= params.head_dim_vo) continue;
    QuadState all = QuadState::empty();
    if constexpr (kC.canonical) {
      QuadState part[kC.warps];  // chunks in order; where the run has none the state is empty
#pragma unroll
      for (int k = 0; k < kC.warps; ++k) part[k] = warp_quad(smem, k, r, column);
#pragma unroll
      for (int step = 1; step < kC.warps; step *= 2) {
#pragma unroll
        for (int k = 0; k + step < kC.warps; k += 2 * step) part[k] = join_quads(part[k], part[k + step]);
      }
      all = part[0];
      if (!fold_run(params, w, i, 16 * kQuads, all)) continue;
    } else {
#pragma unroll
      for (int k = 0; k < kC.warps; ++k) all.m = fmaxf(all.m, smem.warp_m()[k * 16 + r]);
      const float base = all.m == -infinity() ? 0.0f : all.m;
#pragma unroll
      for (int k = 0; k < kC.warps; ++k) add_weighted(all, warp_quad(smem, k, r, column), base);
    }
    if (!slot.exists()) {
      store_output_quad<kC>(params, make_row(params, plan, w.item, r), column, all);
    } else {
      store_quad(slot, r, column, all);
    }
  }
}

// Every warp sums its part of a tile's pieces, from scratch to where sum_warps finds them. With one level each worker from the
// first to the last has a piece.
template <AttendSm80Config kC>
FULMEN_FN void gather_pieces(const AttendSm80Params& params, const WarpItem& w, int64_t share, const AttendSmem<kC>& smem,
                             int warp, int lane) {
  constexpr int kBatch = kC.head_dim_vo <= 128 ? 4 : 2;  // loads of one thread side by side
  const Tile& tile = w.item.piece.tile;
  const int32_t first = worker_of(share, tile.cost_begin);
  const int32_t count = worker_of(share, tile.cost_begin + tile.cost() - tile.unit_cost) - first + 1;
  const int quads = ceil_div(params.head_dim_vo, 4), all = tile.num_rows * quads;
#pragma unroll 1
  for (int i = lane; i < all; i += 32 * kBatch) {
    int rows[kBatch], columns[kBatch];
    QuadState sums[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int mine = min(i + 32 * k, all - 1);
      rows[k] = mine / quads;
      columns[k] = 4 * (mine - rows[k] * quads);
      sums[k] = QuadState::empty();
    }
#pragma unroll 1
    for (int p = warp; p < count; p += kC.warps) {
      const Slot slot = worker_slot(params, first + p, p == 0);
      QuadState parts[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) parts[k] = load_quad(slot, rows[k], columns[k]);
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        QuadState both = QuadState::empty();
        both.m = fmaxf(sums[k].m, parts[k].m);
        const float base = both.m == -infinity() ? 0.0f : both.m;
        add_weighted(both, sums[k], base);
        add_weighted(both, parts[k], base);
        sums[k] = both;
      }
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (i + 32 * k >= all) break;
      *reinterpret_cast<float4*>(smem.warp_o(warp) + rows[k] * kC.merge_stride() + columns[k]) = sums[k].o;
      if (columns[k] != 0) continue;
      smem.warp_m()[warp * 16 + rows[k]] = sums[k].m;
      smem.warp_l()[warp * 16 + rows[k]] = sums[k].l;
    }
  }
}

// The end of an item: the warps' states become one, and where it is the last of a split tile's, its pieces.
template <AttendSm80Config kC>
FULMEN_FN bool finish_item(const AttendSm80Params& params, const PlanView& plan, const WarpItem& w, int64_t share,
                           const AttendSmem<kC>& smem, int warp, int lane) {
  __syncthreads();
  if constexpr (kC.canonical || kC.levels) {
    sum_warps<kC>(params, plan, w, w.slot, smem);
    return (!kC.canonical || w.ends_piece()) && (!w.slot.exists() || complete_tile<kC>(params, plan, w.item, smem));
  } else {
    Slot slot = w.slot;
#pragma unroll 1
    while (true) {  // twice for who completes a split tile
      sum_warps<kC>(params, plan, w, slot, smem);
      if (!slot.exists() || !arrive<kC>(params, share, w.item, smem)) return true;
      gather_pieces<kC>(params, w, share, smem, warp, lane);
      slot.o = nullptr;
      __syncthreads();
    }
  }
}

// Queue entries are copied by words, and no word may be one that nobody wrote.
template <AttendSm80Config kC>
FULMEN_FN void clear_queues(const AttendSmem<kC>& smem) {
  static_assert(sizeof(WarpQueue<kC>) * kC.warps <= kC.queue_bytes(), "queue_bytes");
  auto* words = reinterpret_cast<uint32_t*>(reinterpret_cast<WarpQueue<kC>*>(smem.queue()) + threadIdx.x / 32);
  for (int i = threadIdx.x % 32; i < static_cast<int>(sizeof(WarpQueue<kC>) / 4); i += 32) words[i] = 0;
  __syncwarp();
}

template <AttendSm80Config kC>
FULMEN_FN void attend_decode(const AttendSm80Params& params, const PlanView& plan, const AttendSmem<kC>& smem) {
  static_assert(kC.warp_rows == 16 && kC.head_dim_qk == kC.head_dim_vo, "K and V share a ring");
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  auto& queue = reinterpret_cast<WarpQueue<kC>*>(smem.queue())[warp];
  start_queue<kC>(params, plan, queue, lane);
  const uint32_t ring = ptx::shared_address(smem.ring()) + warp * kC.stages * WarpCopies<kC>::kSlotBytes;
  WarpCopies<kC> copies(params, plan, queue, smem, ring, warp, lane);

  const float scale = kC.makes_logits() ? 1.0f : params.sm_scale * kLog2e;
  RowState<kC.head_dim_vo> state[1];
  AttendRow rows[2];
  VariantRow variant_rows[2];
  QueryOperands<kC> q;
  float s[1][kC.step_keys / 8][4];
  int all_lo = 0, all_hi = 0;  // keys that all rows see need no mask
  int32_t first = 0;           // key of the step at work
  bool fresh = true, values = false;
  OwnTiles own_tiles;          // with several levels
  // Each turn reads one half step, or ends an item.
  for (int read = 0, slot = 0, reader = 0;;) {
    copies.fill(read, reader);
    const WarpItem& w = queue.at(reader);
    if (fresh) {
      if (!w.exists) break;
      fresh = false;
      first = w.first;
      rows[0] = make_row(params, plan, w.item, lane >> 2);
      rows[1] = make_row(params, plan, w.item, (lane >> 2) + 8);
      if constexpr (kC.variants.read_rows()) {
        variant_rows[0] = make_variant_row<kC>(params, plan, w.item, rows[0]);
        variant_rows[1] = make_variant_row<kC>(params, plan, w.item, rows[1]);
      }
      if constexpr (kC.variants.rope) {
        unsigned char* turned = reinterpret_cast<unsigned char*>(smem.warp_o(warp));
        load_turned_rows<kC>(turned, params, rows, variant_rows, w.item.piece.tile.num_rows, lane);
        q.turned = ptx::shared_address(turned);
      }
      q.set(params, rows, lane);
      all_lo = rows[0].token >= 0 ? rows[0].lo : 0;
      all_hi = rows[0].token >= 0 ? rows[0].hi : 1 << 30;
      if (rows[1].token >= 0) all_lo = max(all_lo, rows[1].lo), all_hi = min(all_hi, rows[1].hi);
      all_lo = __reduce_max_sync(0xffffffffu, all_lo);
      all_hi = __reduce_min_sync(0xffffffffu, all_hi);
      state[0].clear();
    }
    if (first >= w.last) {
      if (reader > 0) {
        __syncthreads();  // all have read the states of the item before
      } else if constexpr (kC.variants.rope) {
        __syncwarp();  // and the rows that were turned there
      }
      put_states<kC>(state[0], w.item.piece.tile.num_rows, w.bad_page || !w.item.piece.segment.valid, smem, warp, lane);
      const bool complete = finish_item<kC>(params, plan, w, queue.cursor.share, smem, warp, lane);
      if (kC.levels && complete) own_tiles.add(params, plan, w.item);
      if constexpr (kC.variants.rope) __syncthreads();  // all have read the warps' outputs: turned rows take their place
      fresh = true;
      ++reader;
      continue;
    }
    const int keys = min(kC.step_keys, w.last - first);
    copies.wait(read);
    const uint32_t tile = ring + slot * WarpCopies<kC>::kSlotBytes;
    if (!values) {
      if constexpr (kC.variants.rope) {
        turn_keys<kC.dtype, kC.max_dim(), kC.step_keys>(tile, 0, params, first, lane);
        __syncwarp();
      }
      decode_scores<kC>(s[0], params, q, tile, lane);
      if constexpr (!QueryOperands<kC>::kHeld && kC.variants.read_rows()) {  // as with the rows below
        variant_rows[0] = make_variant_row<kC>(params, plan, w.item, make_row(params, plan, w.item, lane >> 2));
        variant_rows[1] = make_variant_row<kC>(params, plan, w.item, make_row(params, plan, w.item, (lane >> 2) + 8));
      }
      vary_scores<kC>(s[0], params, variant_rows, first, lane);
      if (first < all_lo || first + kC.step_keys > all_hi || keys < kC.step_keys) {
        if constexpr (!QueryOperands<kC>::kHeld) {  // beside a long row's output there are no registers for them
          rows[0] = make_row(params, plan, w.item, lane >> 2);
          rows[1] = make_row(params, plan, w.item, (lane >> 2) + 8);
        }
        const int lo[2] = {rows[0].lo - first, rows[1].lo - first};
        const int hi[2] = {min(rows[0].hi - first, keys), min(rows[1].hi - first, keys)};
        mask_scores(s[0], lo, hi, lane, hidden_score<kC>());
      }
      weigh_scores<kC>(s, state, scale);
    } else {
      decode_output<kC>(state[0].o, s[0], tile, lane);
      first += w.stride;
    }
    values = !values;
    ++read;
    slot = slot + 1 == kC.stages ? 0 : slot + 1;
  }
  if constexpr (kC.levels) finish_own_tiles<kC>(params, plan, own_tiles, smem);
}

}  // namespace fulmen
