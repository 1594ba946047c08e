#include "cpu/attention.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "cpu/attention_engine.hpp"
#include "cpu/key_rows.hpp"

// Reads top to bottom: working memory, a tile's rows, a piece of a tile, joining pieces, the call.
namespace fulmen::cpu {
namespace {

#include "kernels/variants/custom_mask.hpp"

constexpr float kLog2e = 1.4426950408889634f;

const Engine& engine_for(DType kv_dtype, uint32_t features) {
  // Rotated keys are no bf16 numbers any more: RoPE on the fly stays in fp32.
  if (kv_dtype == DType::bf16 && !(features & kRope) && bf16_engine()) return *bf16_engine();
  return fp32_engine();
}

// ------------------------------------------------------------------------------------------------ working memory

struct Arena {
  char* base = nullptr;  // null: only counting
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* p = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += round_up<int64_t>(count * static_cast<int64_t>(sizeof(T)), 256);
    return p;
  }
};

// Of one thread. The stack holds the states that canon::FoldStack has not joined yet.
struct Workspace {
  TileWork tile;
  TileRow rows[kTileRows];
  uint64_t visible[kTileRows];
  float alpha[kTileRows];
  KeyBlock block;
  const void* pointers[4][kBlock];
  State stack[canon::FoldStack::kMaxDepth];
};

int32_t stack_depth(const ScheduleShape& shape) {
  return slot_layout(shape).nodes_per_cut + 2;
}

// One layout for sizes and for pointers.
Workspace* lay_out(Arena& arena, const ScheduleShape& shape, int32_t qk_dim, int32_t vo_dim) {
  const int32_t qk_pad = round_up(qk_dim, 16), vo_pad = round_up(vo_dim, 16);
  Workspace* w = arena.take<Workspace>(1);
  void* q = arena.take<double>(static_cast<int64_t>(kTileRows) * round_up(qk_dim, 32));
  void* k = arena.take<float>(static_cast<int64_t>(kBlock) * qk_pad);
  float* v = arena.take<float>(static_cast<int64_t>(kBlock) * vo_pad);
  float* spare = arena.take<float>(static_cast<int64_t>(kBlock) * vo_pad);
  float* s = arena.take<float>(kTileRows * kBlock);
  float* l = arena.take<float>(kTileRows * kBlock);
  if (w) {
    w->tile.q = q, w->tile.k = k, w->tile.v = v, w->tile.spare = spare, w->tile.s = s, w->tile.l = l;
    w->tile.rows = w->rows, w->tile.visible = w->visible, w->tile.alpha = w->alpha;
    w->block = {-1, 0, w->pointers[0], w->pointers[1], w->pointers[2], w->pointers[3], {}};
    w->tile.qk_dim = qk_dim, w->tile.vo_dim = vo_dim, w->tile.qk_pad = qk_pad, w->tile.vo_pad = vo_pad;
  }
  for (int32_t i = 0; i < stack_depth(shape); ++i) {
    State state{arena.take<float>(static_cast<int64_t>(kTileRows) * vo_pad), arena.take<float>(kTileRows),
                arena.take<float>(kTileRows)};
    if (w) w->stack[i] = state;
  }
  return w;
}

int64_t slots_bytes(const ScheduleShape& shape, int32_t head_dim_vo) {
  return round_up<int64_t>(num_slots(slot_layout(shape)) * slot_floats(kTileRows, head_dim_vo) * 4, 256);
}

State slot_state(const AttentionParams& p, int64_t slot) {
  const int64_t vo_pad = round_up(p.head_dim_vo, 16);
  float* base = static_cast<float*>(p.scratch) + slot * slot_floats(kTileRows, p.head_dim_vo);
  return {base, base + kTileRows * vo_pad, base + kTileRows * (vo_pad + 1)};
}

State rows_from(const State& state, int32_t row, int32_t vo_pad) {
  return {state.o + static_cast<int64_t>(row) * vo_pad, state.m + row, state.l + row};
}

// ------------------------------------------------------------------------------------------------ rows

struct Reach {  // keys that some row of a tile sees, and those that all see
  int32_t first, limit;
  int32_t all_first, all_limit;
};

struct RowPlace {
  int32_t token;    // in the segment
  int32_t qo_head;
};
RowPlace place_of(const ScheduleGroup& group, const Tile& tile, int32_t r) {
  const int32_t packed = tile.row_begin + r % tile.num_rows;
  const int32_t head = tile.head + r / tile.num_rows;
  return {packed / group.group_size, head * group.group_size + packed % group.group_size};
}

Reach set_rows(const AttentionParams& p, const PlanView& plan, const Piece& piece, TileWork& work) {
  const ScheduleGroup& group = p.shape.groups[p.group];
  const Segment& s = piece.segment;
  const int32_t last = p.shape.num_levels - 1;
  const int64_t share_end = s.share_end;
  Reach reach{0x7fffffff, 0, 0, 0x7fffffff};
  work.head_rows = piece.tile.num_rows;
  work.num_rows = piece.tile.num_rows * piece.tile.num_heads;
  int32_t request = s.last ? s.index : -1;
  for (int32_t r = 0; r < work.num_rows; ++r) {
    const RowPlace place = place_of(group, piece.tile, r);
    const int64_t row = s.row_begin + place.token;
    TileRow& out = work.rows[r];
    if (r == 0 || place.qo_head % group.group_size == 0) {
      const int64_t* row_begin = plan.row_begin(last);
      if (!s.last && (request < 0 || row < row_begin[request] || row >= row_begin[request + 1])) {
        request = search_prefix(row_begin, plan.header->num_segments[last], row);
      }
      const int64_t length = plan.key_end(last)[request];
      const int64_t index = row - row_begin[request];
      const int64_t num_rows = row_begin[request + 1] - row_begin[request];
      const int64_t position = length - num_rows + index;
      const int64_t limit = length < 0 ? 0 : std::min(key_limit(group, position, length), share_end);
      const int64_t first = std::max<int64_t>(first_key(group, position), s.share_begin);
      out.position = static_cast<int32_t>(position);
      out.limit = static_cast<int32_t>(std::max(first, limit));
      out.first = static_cast<int32_t>(first);
      out.mask_bit = out.mask_end = 0;
      if (p.features & kCustomMask) {
        const int64_t begin = load_index(p.mask_indptr, p.mask_indptr_i64, request);
        const int64_t end = load_index(p.mask_indptr, p.mask_indptr_i64, request + 1);
        const int64_t needed = length < 0 ? 0 : (num_rows * length + 7) / 8;
        const int64_t given = begin < 0 || end < begin ? -1 : end - begin;  // no difference that overflows
        if (given >= needed && end <= p.mask_bytes) {
          out.mask_bit = begin * 8 + index * std::max<int64_t>(length, 0);
          out.mask_end = out.mask_bit + length;
        } else {
          report(p, kFaultKvLen, last, request, needed, given);
          out.mask_end = -1;
        }
      }
    } else {
      out = work.rows[r - 1];
    }
    out.qo_head = place.qo_head;
    out.q = static_cast<const char*>(p.q) +
            (row * p.q_stride_row + out.qo_head * p.q_stride_head) * dtype_bytes(p.q_dtype);
    if (out.mask_end < 0) out.q = missing_row(p.q_dtype);  // no mask for this request: its rows become NaN
    if (out.first < out.limit) {
      reach.first = std::min(reach.first, out.first);
      reach.limit = std::max(reach.limit, out.limit);
    }
    reach.all_first = std::max(reach.all_first, out.first);
    reach.all_limit = std::min(reach.all_limit, out.limit);
  }
  return reach;
}

void set_visible(const AttentionParams& p, const Reach& reach, int32_t base, TileWork& work) {
  const bool custom = (p.features & kCustomMask) != 0;
  if (!custom && base >= reach.all_first && base + kBlock <= reach.all_limit) {
    std::fill_n(work.visible, work.num_rows, ~uint64_t{0});
    return;
  }
  for (int32_t r = 0; r < work.num_rows; ++r) {
    const TileRow& row = work.rows[r];
    const int32_t from = std::clamp(row.first - base, 0, kBlock), to = std::clamp(row.limit - base, 0, kBlock);
    uint64_t bits = from >= to ? 0 : (~uint64_t{0} >> (kBlock - (to - from))) << from;
    if (custom && bits && row.mask_end >= 0) bits &= CustomMask::word(p.mask, row.mask_bit, base, row.mask_end);
    work.visible[r] = bits;
  }
}

void store_rows(const AttentionParams& p, const Engine& engine, const Segment& s, const Tile& tile, int32_t first_row,
                int32_t num_rows, const State* state) {
  const ScheduleGroup& group = p.shape.groups[p.group];
  const int32_t vo_pad = round_up(p.head_dim_vo, 16);
  for (int32_t r = 0; r < num_rows; ++r) {
    const RowPlace place = place_of(group, tile, first_row + r);
    const int64_t row = s.row_begin + place.token;
    const int32_t head = place.qo_head;
    if (row >= p.num_rows) continue;
    void* out = static_cast<char*>(p.o) + (row * p.o_stride_row + head * p.o_stride_head) * dtype_bytes(p.o_dtype);
    float* lse = p.lse && !(p.features & kNoSoftmax) ? p.lse + row * p.lse_stride_row + head * p.lse_stride_head : nullptr;
    const float sink = p.features & kSinks ? p.sinks[head] * kLog2e : -infinity();
    if (state && s.valid) {
      engine.store(state->o + static_cast<int64_t>(r) * vo_pad, state->m[r], state->l[r], sink, p, out, lse);
    } else if (s.valid) {
      engine.store(kZeroRow, -infinity(), 0.0f, sink, p, out, lse);
    } else {  // NaN throughout
      engine.store(kZeroRow, quiet_nan(), quiet_nan(), -infinity(), p, out, lse);
      if (p.features & kNoSoftmax) {
        std::memcpy(out, missing_row(p.o_dtype), static_cast<size_t>(p.head_dim_vo) * dtype_bytes(p.o_dtype));
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------ pieces

struct PieceRun {
  const AttentionParams& p;
  const Engine& engine;
  Workspace& w;
  const Chain& chain;
  const Piece& piece;
  const Reach& reach;
  const Piece* ahead;  // of the same worker, nullable: its first block is fetched while this one's last is computed with
  const Chain* ahead_chain;
  int32_t head;

  // The blocks of a tile's keys in order; `base` of the next one, or -1.
  int32_t next_base(int32_t base) const {
    const int32_t next = base + kBlock;
    return next < reach.limit && next < piece.unit_end * canon::kChunkKeys ? next : -1;
  }
  void find_rows(int32_t base, const void** k, const void** v) const {
    chain.rows(base, std::max(base, reach.first), std::min(base + kBlock, reach.limit), head, k, v);
  }

  // The same keys of the next kv head.
  void to_next_head(const KvStorage& storage, const void** rows) const {
    const int64_t step = storage.stride_head * dtype_bytes(p.kv_dtype);
    const void* const missing = missing_row(p.kv_dtype);
    for (int32_t i = 0; i < kBlock; ++i) {
      const bool there = rows[i] != kZeroRow && rows[i] != missing;
      rows[i] = static_cast<const char*>(rows[i]) + (there ? step : 0);
    }
  }
  // Of `rows` keys for `heads` heads, w.block's next ones.
  Prefetcher prefetcher(int32_t rows, int32_t heads) const {
    const int64_t element = dtype_bytes(p.kv_dtype);
    Prefetcher f{w.block.next_k, w.block.next_v, p.k.stride_head * element, p.v.stride_head * element,
                 static_cast<int32_t>(p.head_dim_qk * element), static_cast<int32_t>(p.head_dim_vo * element),
                 rows, heads, 0, 0, 0};
    if (heads > 1 && f.k_head_bytes == f.k_span && f.v_head_bytes == f.v_span) {  // heads of a key lie together
      f.k_span *= heads, f.v_span *= heads;
      f.heads = 1;
    }
    return f;
  }
  Prefetcher first_of_ahead() const {
    if (ahead == nullptr) return {};
    const int32_t base = ahead->unit_begin * canon::kChunkKeys;
    const int64_t end = std::min<int64_t>(base + kBlock, ahead->segment.share_end);
    if (end <= base) return {};
    ahead_chain->rows(base, base, end, ahead->tile.head, w.block.next_k, w.block.next_v);
    return prefetcher(static_cast<int32_t>(end - base), ahead->tile.num_heads);
  }
  // The rows of one head of a wide tile.
  TileWork head_part(int32_t h) const {
    TileWork part = w.tile;
    const int64_t first = static_cast<int64_t>(h) * piece.tile.num_rows;
    part.num_rows = part.head_rows;
    part.rows += first, part.visible += first, part.alpha += first;
    part.q = static_cast<char*>(part.q) + first * part.q_row_bytes;
    part.s += first * kBlock, part.l += first * kBlock;
    return part;
  }

  // One chunk from the empty state.
  void chunk(int32_t index, State& state) {
    TileWork& work = w.tile;
    KeyBlock& block = w.block;
    bool fresh = true;
    const int32_t begin = index * canon::kChunkKeys;
    for (int32_t base = begin; base < begin + canon::kChunkKeys; base += kBlock) {
      if (base + kBlock <= reach.first || base >= reach.limit) continue;
      if (block.base != base) find_rows(base, block.k, block.v);  // else looked up as the next one
      block.base = base;
      block.count = std::min(kBlock, reach.limit - base);
      const int32_t next = next_base(base);
      set_visible(p, reach, base, work);
      if (next >= 0) {
        find_rows(next, block.next_k, block.next_v);
        block.next = prefetcher(std::min(kBlock, reach.limit - next), piece.tile.num_heads);
      } else {
        block.next = first_of_ahead();
      }
      for (int32_t h = 0; h < piece.tile.num_heads; ++h) {
        if (h > 0) {
          to_next_head(p.k, block.k);
          to_next_head(p.v, block.v);
        }
        TileWork part = head_part(h);
        State part_state = rows_from(state, h * piece.tile.num_rows, work.vo_pad);
        engine.scores(part, block);
        engine.weights(part, block, part_state, fresh);
        engine.values(part, block, part_state, fresh);
      }
      std::swap(block.k, block.next_k);
      std::swap(block.v, block.next_v);
      fresh = false;
      block.base = next;
    }
    if (fresh) {
      std::fill_n(state.m, work.num_rows, -infinity());
      std::fill_n(state.l, work.num_rows, 0.0f);
    } else {
      engine.fold_sums(work, state);
    }
  }

  // Chunks [begin, end) into w.stack[0].
  void node(int32_t begin, int32_t end) {
    canon::FoldStack fold;
    const auto join = [&] {
      engine.join(w.stack[fold.depth - 2], w.stack[fold.depth - 1], w.tile.num_rows, w.tile.vo_pad);
      fold.joined();
    };
    for (int32_t c = begin; c < end; ++c) {
      for (int32_t joins = fold.joins_before(c); joins > 0; --joins) join();
      chunk(c, w.stack[fold.depth]);
      fold.push(c, c + 1);
    }
    while (fold.depth > 1) join();
  }
};

void run_piece(const AttentionParams& p, const Engine& engine, const PlanView& plan, const SlotLayout& layout,
               Workspace& w, const Piece& piece, const Piece* ahead, int32_t worker) {
  const bool complete = is_complete(piece);
  if (!piece.segment.valid || piece.unit_begin >= piece.unit_end) {
    if (complete) store_rows(p, engine, piece.segment, piece.tile, 0, piece.tile.num_rows * piece.tile.num_heads, nullptr);
    return;
  }
  w.tile.params = &p;
  w.tile.scale_log2 = p.sm_scale * kLog2e;
  w.block.base = -1;
  const Reach reach = set_rows(p, plan, piece, w.tile);
  engine.load_q(w.tile);
  const Chain chain(p, plan, piece.segment);
  std::optional<Chain> ahead_chain;
  if (ahead != nullptr) ahead_chain.emplace(p, plan, ahead->segment);
  PieceRun run{p, engine, w, chain, piece, reach, ahead, ahead ? &*ahead_chain : nullptr, piece.tile.head};
  NodeCursor nodes(p.shape, piece);
  int64_t slot = complete ? 0 : first_slot(p.shape, layout, plan, p.group, piece, worker);
  int32_t begin, end;
  while (nodes.next(begin, end)) {
    const State own = w.stack[0];
    if (!complete) w.stack[0] = slot_state(p, slot++);
    run.node(begin, end);
    if (complete) store_rows(p, engine, piece.segment, piece.tile, 0, w.tile.num_rows, &own);
    w.stack[0] = own;
  }
}

// ------------------------------------------------------------------------------------------------ joining

struct NodeRef {
  State state;
  int32_t begin, end;
};

// Appends the nodes of a tile's pieces; states begin at `row` of the tile.
void collect(const AttentionParams& p, const PlanView& plan, const SlotLayout& layout, const Segment& s,
             const Tile& tile, int32_t row, std::vector<NodeRef>& nodes) {
  TilePieces pieces(p.shape, plan, p.group, s, tile);
  Piece piece;
  int32_t worker;
  while (pieces.next(piece, worker)) {
    int64_t slot = first_slot(p.shape, layout, plan, p.group, piece, worker);
    NodeCursor cursor(p.shape, piece);
    int32_t begin, end;
    while (cursor.next(begin, end)) {
      nodes.push_back({rows_from(slot_state(p, slot++), row, round_up(p.head_dim_vo, 16)), begin, end});
    }
  }
}

// Joins all partial states of a request's tile and writes its rows.
void join_tile(const AttentionParams& p, const Engine& engine, const PlanView& plan, const SlotLayout& layout,
               const Segment& s, const Tile& tile) {
  const ScheduleGroup& group = p.shape.groups[p.group];
  const int32_t vo_pad = round_up(p.head_dim_vo, 16);
  thread_local std::vector<NodeRef> nodes;  // grows once
  const Chain chain(p, plan, s);
  const int32_t all_rows = tile.num_rows * tile.num_heads;
  for (int32_t row = 0; row < all_rows;) {
    // Rows that share one tile on every level are joined together.
    int32_t rows = all_rows - row;
    nodes.clear();
    for (int32_t i = 0; i + 1 < chain.count; ++i) {
      const Segment above = load_segment(p.shape, plan, chain.links[i].level, chain.links[i].segment);
      if (num_tiles(group, above) == 0) continue;
      const int32_t head = tile.head + row / tile.num_rows, in_head = row % tile.num_rows;
      const int32_t packed =
          static_cast<int32_t>(s.row_begin - above.row_begin) * group.group_size + tile.row_begin + in_head;
      const bool wide = tile_heads(group, above) > 1;
      Tile t = make_tile(p.shape, group, above, wide ? 0 : head, packed / group.tile_q);
      t.cost_begin = tile_cost_begin(p.shape, plan, p.group, above, t.head, t.index);
      rows = std::min({rows, tile.num_rows - in_head, t.row_begin + t.num_rows - packed});
      collect(p, plan, layout, above, t, (wide ? head * t.num_rows : 0) + packed - t.row_begin, nodes);
    }
    collect(p, plan, layout, s, tile, row, nodes);

    canon::FoldStack fold;
    State stack[canon::FoldStack::kMaxDepth];
    const auto join = [&] {
      engine.join(stack[fold.depth - 2], stack[fold.depth - 1], rows, vo_pad);
      fold.joined();
    };
    for (const NodeRef& node : nodes) {
      for (int32_t joins = fold.joins_before(node.begin); joins > 0; --joins) join();
      stack[fold.depth] = node.state;
      fold.push(node.begin, node.end);
    }
    while (fold.depth > 1) join();
    store_rows(p, engine, s, tile, row, rows, nodes.empty() ? nullptr : &stack[0]);
    row += rows;
  }
}

// The tile that worker w's share begins inside, if w is the first to begin inside it.
bool split_tile(const AttentionParams& p, const PlanView& plan, int32_t w, Segment& s, Tile& tile) {
  const ScheduleGroup& group = p.shape.groups[p.group];
  const int64_t total = total_cost(p.shape, plan, p.group);
  const int64_t share = plan.header->share[p.group];
  const int64_t begin = share_begin(total, share, w);
  if (begin <= 0 || begin >= total) return false;
  const int64_t* prefix = plan.cost_prefix(p.group, 0);
  const int32_t index = search_prefix(prefix, plan.header->num_segments[0], begin);
  s = load_segment(p.shape, plan, 0, index);
  const int64_t head_cost = (prefix[index + 1] - prefix[index]) / head_turns(group, s);
  const int32_t head = static_cast<int32_t>((begin - prefix[index]) / head_cost);
  int64_t cost = prefix[index] + head * head_cost;
  for (int32_t t = 0;; ++t) {
    tile = make_tile(p.shape, group, s, head, t);
    tile.cost_begin = cost;
    cost += tile.cost();
    if (begin < cost) break;
  }
  if (tile.cost_begin >= begin) return false;
  if (share_begin(total, share, w - 1) > tile.cost_begin) return false;
  return TilePieces(p.shape, plan, p.group, s, tile).is_split();
}

void join_segment_head(const AttentionParams& p, const Engine& engine, const PlanView& plan, const SlotLayout& layout,
                       const Segment& s, int32_t head) {
  const ScheduleGroup& group = p.shape.groups[p.group];
  const int32_t tiles = num_tiles(group, s);
  int64_t cost = tiles > 0 ? tile_cost_begin(p.shape, plan, p.group, s, head, 0) : 0;
  for (int32_t t = 0; t < tiles; ++t) {
    Tile tile = make_tile(p.shape, group, s, head, t);
    tile.cost_begin = cost;
    cost += tile.cost();
    if (has_other_levels(s) || TilePieces(p.shape, plan, p.group, s, tile).is_split()) {
      join_tile(p, engine, plan, layout, s, tile);
    }
  }
}

}  // namespace

// ------------------------------------------------------------------------------------------------ the call

const char* attention_engine_name(DType kv_dtype, uint32_t features) { return engine_for(kv_dtype, features).name; }

int64_t attention_scratch_bytes(const ScheduleShape& shape, int32_t head_dim_qk, int32_t head_dim_vo, int32_t threads) {
  Arena arena;
  lay_out(arena, shape, head_dim_qk, head_dim_vo);
  return slots_bytes(shape, head_dim_vo) + arena.used * threads;
}

void attention(const AttentionParams& p, const Pool& pool, int32_t threads) {
  const PlanView plan(p.shape, p.plan);
  const ScheduleGroup& group = p.shape.groups[p.group];
  const int64_t total = total_cost(p.shape, plan, p.group);
  if (total == 0) return;
  const Engine& engine = engine_for(p.kv_dtype, p.features);
  const SlotLayout layout = slot_layout(p.shape);

  // Each thread has a working memory of its own and takes shares until none is left.
  Arena one;
  lay_out(one, p.shape, p.head_dim_qk, p.head_dim_vo);
  std::atomic<int32_t> next_worker{0};
  pool.parallel_for(std::min<int64_t>(threads, group.num_workers), [&](int64_t thread) {
    Arena arena{static_cast<char*>(p.scratch) + slots_bytes(p.shape, p.head_dim_vo) + one.used * thread, 0};
    Workspace& w = *lay_out(arena, p.shape, p.head_dim_qk, p.head_dim_vo);
    for (int32_t worker; (worker = next_worker.fetch_add(1, std::memory_order_relaxed)) < group.num_workers;) {
      PieceCursor pieces(p.shape, plan, p.group, worker);
      Piece piece, following;
      for (bool more = pieces.next(piece); more; piece = following) {
        more = pieces.next(following);
        // Windows begin somewhere inside a piece: not worth finding out.
        const bool fetch = more && following.segment.valid && following.unit_begin < following.unit_end && group.window_left < 0;
        run_piece(p, engine, plan, layout, w, piece, fetch ? &following : nullptr, worker);
      }
    }
  });

  if (p.shape.num_levels == 1) {
    if (group.num_workers < 2) return;
    pool.parallel_for(group.num_workers - 1, [&](int64_t i) {
      Segment s;
      Tile tile;
      if (split_tile(p, plan, static_cast<int32_t>(i) + 1, s, tile)) join_tile(p, engine, plan, layout, s, tile);
    });
    return;
  }
  const int32_t last = p.shape.num_levels - 1;
  pool.parallel_for(static_cast<int64_t>(plan.header->num_segments[last]) * group.num_kv_heads, [&](int64_t i) {
    const Segment s = load_segment(p.shape, plan, last, static_cast<int32_t>(i / group.num_kv_heads));
    const int32_t head = static_cast<int32_t>(i % group.num_kv_heads);
    if (head < head_turns(group, s)) join_segment_head(p, engine, plan, layout, s, head);
  });
}

}  // namespace fulmen::cpu
