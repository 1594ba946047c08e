// The items of a decode block as its warps see them: each warp walks through all of them with a queue of its own.
#pragma once

#include <kernels/attention/attend_items.cuh>
#include <kernels/attention/attend_pieces.cuh>

namespace fulmen {

// An item as one warp of a decode block sees it: the steps of its keys that begin at first, first + stride, ... below last.
struct WarpItem {
  AttendItem item;
  KeyMap map;
  int32_t first, last, stride;
  int32_t exists;
  int32_t bad_page;
  Slot slot;  // of the node
  // Canon: the item is a run [begin, end) of the piece's chunks, at most one a warp, of node [node_begin, node_end).
  int32_t begin, end, node_begin, node_end;

  FULMEN_FN bool ends_piece() const { return end == item.piece.unit_end; }
};

// A warp's walk through the block's items. Lane 0 moves it, everybody reads it; items wait in a queue because copies
// run ahead of the arithmetic.
template <AttendSm80Config kC>
struct WarpQueue {
  static constexpr int kDepth = 4;
  PieceCursor cursor;
  WarpItem items[kDepth];

  FULMEN_FN WarpItem& at(int index) { return items[index % kDepth]; }
  // Entry `index` as the one before, for the whole warp.
  FULMEN_FN WarpItem& copy_last(int index, int lane) {
    static_assert(sizeof(WarpItem) % 4 == 0, "copied by words");
    const uint32_t* from = reinterpret_cast<const uint32_t*>(&at(index - 1));
    uint32_t* to = reinterpret_cast<uint32_t*>(&at(index));
    for (int i = lane; i < static_cast<int>(sizeof(WarpItem) / 4); i += 32) to[i] = from[i];
    __syncwarp();
    return at(index);
  }
};

// Canon: the run of chunks of a piece that begins at w.end, by one lane.
template <AttendSm80Config kC>
FULMEN_FN void begin_run(WarpItem& w) {
  const Piece& p = w.item.piece;
  if (w.end == w.node_end) {
    w.node_begin = w.end;
    w.node_end = canon::node_end(w.end, p.unit_end, tree_first(p.segment, p.tile), tree_last(p.segment, p.tile));
  }
  w.begin = w.end;
  w.end = min(w.node_end, (w.begin & ~(kC.warps - 1)) + kC.warps);
  if (p.unit_end == p.unit_begin) w.end = w.node_end = w.begin;
}

// The keys that fall to `warp`. Of many every warps-th step, so that the block reads one stream and its warps end within a step
// of each other. Else a run of its own, in grains of 16 keys.
template <AttendSm80Config kC>
FULMEN_FN void split_keys(WarpItem& w, int warp) {
  w.stride = kC.step_keys;
  if constexpr (kC.canonical) {
    const int32_t chunk = (w.begin & ~(kC.warps - 1)) + warp;
    w.first = w.last = 0;
    if (chunk < w.begin || chunk >= w.end) return;
    const int32_t blocks = w.item.key_begin & ~(canon::kKeyBlock - 1);
    w.first = max(chunk * canon::kChunkKeys, blocks);
    w.last = min((chunk + 1) * canon::kChunkKeys, w.item.key_end);
    return;
  }
  constexpr int32_t kGrain = 16;
  const int32_t begin = w.item.key_begin & ~(kGrain - 1), keys = w.item.key_end - begin;
  if (keys >= 4 * kC.warps * kC.step_keys) {
    w.stride = kC.warps * kC.step_keys;
    w.first = w.item.key_begin + warp * kC.step_keys;
    w.last = w.item.key_end;
    return;
  }
  const int32_t grains = ceil_div(keys, kGrain);
  w.first = max(w.item.key_begin, begin + kGrain * (grains * warp / kC.warps));
  w.last = min(w.item.key_end, begin + kGrain * (grains * (warp + 1) / kC.warps));
}

// Canon: the next run of the same piece. False if there is none.
template <AttendSm80Config kC>
FULMEN_FN bool next_run(WarpQueue<kC>& queue, int index, int warp, int lane) {
  if (!kC.canonical || index == 0 || !queue.at(index - 1).exists || queue.at(index - 1).ends_piece()) return false;
  WarpItem& w = queue.copy_last(index, lane);
  if (lane == 0) {
    if (w.end == w.node_end) w.slot = w.slot.node(1);
    begin_run<kC>(w);
    split_keys<kC>(w, warp);
  }
  __syncwarp();
  return true;
}

// The next kv head of a request with one tile differs from the last in its head alone: most items of a decode block. False
// if it is anything else.
template <AttendSm80Config kC>
FULMEN_FN bool next_head(const AttendSm80Params& params, WarpQueue<kC>& queue, int index, int lane) {
  if (index == 0) return false;
  PieceCursor& cursor = queue.cursor;
  const WarpItem& last = queue.at(index - 1);
  const Piece& piece = last.item.piece;
  const int64_t cost = cursor.cost_of(piece.tile);
  if (kC.canonical || !last.exists || (last.slot.exists() && !kC.levels) || !cursor.spent || cursor.tiles != 1 ||
      cursor.head + 1 >= cursor.turns || cursor.position + cost > cursor.end || !(piece.starts_tile && piece.ends_tile)) {
    return false;
  }
  WarpItem& w = queue.copy_last(index, lane);
  if (lane == 0) {
    if (kC.levels && w.slot.exists()) {
      w.slot = w.slot.rows_from(params.shape.max_rows * params.shape.groups[params.group].group_size);
    }
    w.bad_page = 0;
    ++cursor.head;
    cursor.tile_cost = cursor.position;
    cursor.position += cost;
    w.item.piece.tile.head = cursor.head;
    w.item.piece.tile.cost_begin = cursor.tile_cost;
    w.map.k_head = static_cast<uint32_t>(cursor.head * params.k.stride_head >> 3);
    w.map.v_head = static_cast<uint32_t>(cursor.head * params.v.stride_head >> 3);
  }
  __syncwarp();
  return true;
}

template <class T>
FULMEN_FN void copy_words(T& to, const T& from, int lane) {
  static_assert(sizeof(T) % 4 == 0, "whole words");
#pragma unroll
  for (int i = lane; i < static_cast<int>(sizeof(T) / 4); i += 32) {
    reinterpret_cast<uint32_t*>(&to)[i] = reinterpret_cast<const uint32_t*>(&from)[i];
  }
}

// The worker's first piece and the cursor behind it: with one level as the plan has them, else found here.
template <AttendSm80Config kC>
FULMEN_FN void start_queue(const AttendSm80Params& params, const PlanView& plan, WarpQueue<kC>& queue, int lane) {
  if constexpr (kC.levels) {
    if (lane == 0) {
      const int32_t levels = params.shape.num_levels;
      new (&queue.cursor) PieceCursor(params.shape, plan, params.group, blockIdx.x, levels - 1, levels);
    }
  } else {
    const WorkerStart& start = worker_start(params.shape, params.plan, params.group, blockIdx.x);
    if (lane == 0) {
      new (&queue.cursor) PieceCursor(params.shape, plan);
      queue.at(0).exists = start.exists;
    }
    copy_words(queue.at(0).item.piece, start.piece, lane);
    copy_words<CursorState>(queue.cursor, start.cursor, lane);
  }
  __syncwarp();
}

// Fills entry `index` of the queue with the block's next item.
template <AttendSm80Config kC>
FULMEN_FN void next_warp_item(const AttendSm80Params& params, WarpQueue<kC>& queue, int index, int warp, int lane) {
  if (next_run<kC>(queue, index, warp, lane) || next_head<kC>(params, queue, index, lane)) return;
  __syncwarp();  // all have looked at the cursor that lane 0 moves
  if (lane == 0) {
    WarpItem& w = queue.at(index);
    if (kC.levels || index > 0) w.exists = queue.cursor.next(w.item.piece);  // the first piece is there
    w.bad_page = 0;
    w.first = w.last = 0;
    if (w.exists) {
      const Piece& piece = w.item.piece;
      bound_keys(params, w.item);
      w.map = make_key_map(params, w.item.piece.segment);
      w.map.set_head(params, piece.tile.head);
      w.slot = slot_of_piece<kC>(params, w.item);
      if constexpr (kC.canonical) {
        w.end = w.node_end = piece.unit_begin;
        begin_run<kC>(w);
      }
      split_keys<kC>(w, warp);
    }
  }
  __syncwarp();
}

}  // namespace fulmen
