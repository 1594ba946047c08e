// How a prefill block brings in an item's K and V: where its keys lie, a span of them at a time, and copies of its tiles.
#pragma once

#include <kernels/attention/attend_copies.cuh>
#include <kernels/attention/attend_items.cuh>
#include <kernels/attention/attend_pieces.cuh>
#include <kernels/ptx/special.cuh>

namespace fulmen {

struct PrefillItem {
  AttendItem item;
  KeyMap map;
  Slot slot;        // of the first node
  int32_t group_log2;  // keys that lie evenly in memory
  uint32_t k_stride, v_stride;  // from one of them to the next
  int64_t whole_tiles;  // all of them, where the block takes such; 0: its share of the line, along which a cursor walks
  int64_t ordinal;      // of the whole tile after this one
  int32_t segments;     // of level 0
  int32_t next_index;   // that tile's number in its segment
  Segment next_segment;
};

// The places of an item's keys, a span of them at a time: a thread looks up one group of keys that lie evenly in memory (8
// where pages hold multiples of 8, else 1), so that a span is 16 tiles of 64 keys, and a tile costs nothing. Page ids
// are fetched a span ahead.
template <AttendSm80Config kC>
struct KeyPlaces {
  static_assert(2 * kC.step_keys <= kC.num_threads(), "a span has two tiles and more");
  const AttendSm80Params& params;
  const PrefillItem& work;
  uint32_t* places;  // K's of two spans, then V's
  KeyPages pages;

  FULMEN_FN KeyPlaces(const AttendSm80Params& params_, const PrefillItem& work_, uint32_t* places_)
      : params(params_), work(work_), places(places_) {}

  FULMEN_FN int32_t group_log2() const { return work.group_log2; }
  FULMEN_FN int32_t span() const { return kC.num_threads() << group_log2(); }
  FULMEN_FN int32_t slot(int32_t position) const { return position >> group_log2() & (2 * kC.num_threads() - 1); }
  FULMEN_FN int32_t first_of_thread(int32_t span_first) const {
    return span_first + (static_cast<int32_t>(threadIdx.x) << group_log2());
  }
  FULMEN_FN int32_t last_in_item(int32_t first) const { return min(first + (1 << group_log2()), work.item.key_end) - 1; }
  FULMEN_FN bool in_item(int32_t first) const { return last_in_item(first) >= max(first, work.item.key_begin); }

  FULMEN_FN void fetch(int32_t span_first) {
    const int32_t first = first_of_thread(span_first);
    if (in_item(first) && (!kC.levels || first >= work.map.key_begin)) pages = load_pages(params, work.map, first);
  }
  // The last key of the group tells whether all are in the pool.
  FULMEN_FN KeyPlace place_group(const KeyMap& map, int32_t first, const KeyPages& entries) const {
    if (!key_in_pool(params, map, last_in_item(first))) return {kNoPlace, kNoPlace};
    return place_key<kC.general>(params, map, first, entries);
  }
  // Of the span fetched last.
  FULMEN_FN void place(int32_t span_first, int32_t* bad) const {
    const int32_t first = first_of_thread(span_first);
    KeyPlace where{kNoPlace, kNoPlace};
    if (in_item(first)) {
      if (!kC.levels || first >= work.map.key_begin) {
        where = place_group(work.map, first, pages);
      } else {
        const KeyMap above = ancestor_map(params, work.map, first);
        where = place_group(above, first, load_pages(params, above, first));
      }
      if (where.k == kNoPlace) {
        report_page_fault(params, work.item, max(first, work.item.key_begin));
        *bad = 1;
      }
    }
    places[slot(first)] = where.k;
    places[2 * kC.num_threads() + slot(first)] = where.v;
  }
  FULMEN_FN const uint32_t* of_kind(bool values) const { return places + (values ? 2 * kC.num_threads() : 0); }
  FULMEN_FN const uint32_t* at(int32_t first, bool values) const { return of_kind(values) + slot(first); }
};

// A thread's part of a tile of K or V: one chunk of rows kStep apart.
template <AttendSm80Config kC, int kDim>
struct RowCopies {
  static constexpr int kChunks = kDim / 8, kStep = kC.num_threads() / kChunks, kRows = kC.step_keys / kStep;
  static constexpr bool kAlike = kStep % 8 == 0;  // they lie alike in their groups
  static constexpr int kBatch = kRows < 2 ? 1 : 2;
  const void* data;
  const uint32_t* places;  // of the rows' groups
  uint32_t to, offset;     // of the first row; from a group's place
  uint32_t groups[kBatch];

  static FULMEN_FN int chunk() { return threadIdx.x % kChunks; }
  static FULMEN_FN int row() { return threadIdx.x / kChunks; }

  // Of a tile that lies in the item as a whole, in groups of 8.
  FULMEN_FN void begin(uint32_t tile, const KvStorage& kv, const uint32_t* tile_places, uint32_t stride) {
    data = kv.data;
    places = tile_places + row() / 8;
    to = tile + tile_offset<kDim>(row(), chunk());
    offset = (row() & 7) * stride + chunk();
  }
  // Rows kBatch i and on: first where they lie, later the copies.
  FULMEN_FN void find(int i) {
    if constexpr (kStep == 8 && kBatch == 2) {
      const uint64_t two = *reinterpret_cast<const uint64_t*>(places + 2 * i);
      groups[0] = static_cast<uint32_t>(two), groups[1] = static_cast<uint32_t>(two >> 32);
    } else {
#pragma unroll
      for (int k = 0; k < kBatch; ++k) groups[k] = places[kStep / 8 * (kBatch * i + k)];
    }
  }
  FULMEN_FN void copy(int i, bool active, int head_dim) {
    const bool padding = 8 * chunk() >= head_dim;
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const bool zero = padding || groups[k] == kNoPlace;
      ptx::cp_async_16_if(active, to + kStep * (kBatch * i + k) * kDim * 2, ptx::vector_at(data, groups[k] + offset), zero);
    }
  }
};

// Those of K and V between the steps of other work: addresses first, then batches of rows.
template <AttendSm80Config kC>
struct CopiesBetween {
  using K = RowCopies<kC, kC.head_dim_qk>;
  using V = RowCopies<kC, kC.head_dim_vo>;
  static constexpr bool kPossible = !kC.general && K::kAlike && V::kAlike && !kC.variants.no_softmax;  // which spills
  const AttendSm80Params& params;
  const KeyPlaces<kC>& keys;
  bool active;
  int32_t slot;  // of the tile's first key
  uint32_t k_tile, v_tile;
  K k;
  V v;

  template <class Rows>
  static FULMEN_FN constexpr bool due(int batch) { return batch < Rows::kRows / Rows::kBatch; }

  // Step i: batches are found at even steps and copied at odd ones.
  FULMEN_FN void operator()(int i) {
    if constexpr (!kPossible) return;
    if (i == 0) {
      k.begin(k_tile, params.k, keys.of_kind(false) + slot, keys.work.k_stride);
      v.begin(v_tile, params.v, keys.of_kind(true) + slot, keys.work.v_stride);
    }
    if (i % 2 == 0) {
      if (due<K>(i / 2)) k.find(i / 2);
      if (due<V>(i / 2)) v.find(i / 2);
    } else {
      if (due<K>(i / 2)) k.copy(i / 2, active, params.head_dim_qk);
      if (due<V>(i / 2)) v.copy(i / 2, active, params.head_dim_vo);
    }
  }
};

// The same of any tile, at once.
template <AttendSm80Config kC, int kDim>
FULMEN_FN void copy_tile(const AttendSmem<kC>& smem, uint32_t tile, const AttendSm80Params& params, const KvStorage& kv,
                         const KeyPlaces<kC>& keys, int32_t first, bool values, int head_dim) {
  if constexpr (kC.general) {
    gather_tile<kDim, kC.step_keys, kC.num_threads()>(smem.at(tile), kv, params.page_size, keys.work.item.piece.tile.head,
                                                      keys.at(first, values), head_dim, threadIdx.x);
  } else {
    using Rows = RowCopies<kC, kDim>;
    const int32_t begin = keys.work.item.key_begin, end = keys.work.item.key_end, log2 = keys.group_log2();
    uint32_t thread = threadIdx.x;
    if constexpr (kC.variants.no_softmax) thread = ptx::unknown(thread);
    const int chunk = thread % Rows::kChunks, row = thread / Rows::kChunks;
    const bool padding = 8 * chunk >= head_dim;
    const uint32_t stride = log2 == 0 ? 0 : values ? keys.work.v_stride : keys.work.k_stride;
    const uint32_t* places = keys.of_kind(values);
    uint32_t at[Rows::kRows];  // read first: the compiler must not move loads across copies
#pragma unroll
    for (int i = 0; i < Rows::kRows; ++i) {
      const int32_t key = first + row + i * Rows::kStep;
      const uint32_t group = places[key >> log2 & (2 * kC.num_threads() - 1)];
      const bool there = !padding & (group != kNoPlace) & (key >= begin) & (key < end);
      at[i] = there ? group + (key & 7) * stride + chunk : kNoPlace;
    }
#pragma unroll
    for (int i = 0; i < Rows::kRows; ++i) {
      const int r = row + i * Rows::kStep;
      const bool zero = at[i] == kNoPlace;
      ptx::cp_async_16(tile + tile_offset<kDim>(r, chunk), ptx::vector_at(kv.data, zero ? 0 : at[i]), zero);
    }
  }
}

}  // namespace fulmen
