// Partial states of attend_sm80: where they lie in scratch, who finds that a tile is complete, and how it joins them.
#pragma once

#include <kernels/attention/attend_output.cuh>
#include <kernels/attention/attend_smem.cuh>
#include <kernels/ptx/memory.cuh>

namespace fulmen {

// A slot of scratch: o [tile_q, dims], m [tile_q], l [tile_q].
struct Slot {
  float* o;
  float* m;
  float* l;
  int stride;
};
FULMEN_FN Slot slot_at(const AttendSm80Params& params, int tile_q, int64_t index) {
  Slot slot;
  slot.stride = round_up(params.head_dim_vo, 16);
  slot.o = static_cast<float*>(params.scratch) + index * slot_floats(tile_q, params.head_dim_vo);
  slot.m = slot.o + tile_q * slot.stride;
  slot.l = slot.m + tile_q;
  return slot;
}

// Where a piece goes: -1 is straight to o.
template <AttendSm80Config kC>
FULMEN_FN int64_t slot_of_piece(const AttendSm80Params& params, const PlanView& plan, const AttendItem& item) {
  if (is_complete(item.piece)) return -1;
  return first_slot(params.shape, params.slots, plan, params.group, item.piece, blockIdx.x);
}

// Says that this block's piece lies in its slot. True for all threads of the one block that came last.
template <AttendSm80Config kC>
FULMEN_FN bool arrive(const AttendSm80Params& params, const PlanView& plan, const AttendItem& item,
                      const AttendSmem<kC>& smem) {
  __threadfence();
  __syncthreads();  // all of the block's stores to the slot
  if (threadIdx.x == 0) {
    const Tile& tile = item.piece.tile;
    const int32_t workers = params.shape.groups[params.group].num_workers;
    const int32_t first = worker_of(total_cost(params.shape, plan, params.group), workers, tile.cost_begin);
    uint32_t* counter = &params.counters->arrivals[first];
    const uint32_t units = max(1, item.piece.unit_end - item.piece.unit_begin);
    const bool last = ptx::atomic_add_acq_rel_gpu(counter, units) + units == static_cast<uint32_t>(tile.cost_units());
    if (last) *counter = 0;  // as the next run must find it
    smem.flags()[kFlagIsLast] = last;
  }
  __syncthreads();
  return smem.flags()[kFlagIsLast] != 0;
}

// Slots of the tile's pieces, in order of keys, into smem.slots(); -1: the worker has no unit of it.
template <AttendSm80Config kC>
FULMEN_FN int list_pieces(const AttendSm80Params& params, const PlanView& plan, const AttendItem& item,
                          const AttendSmem<kC>& smem) {
  const TilePieces all(params.shape, plan, params.group, item.piece.segment, item.piece.tile);
  const int count = all.last_worker - all.worker + 1;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kC.num_threads()) {
    TilePieces one = all;
    one.worker = one.last_worker = all.worker + i;
    Piece piece;
    piece.unit_begin = 0;  // else ptxas carries the last one along and spills it
    int32_t worker = 0;
    smem.slots()[i] = one.next(piece, worker) ? worker * 2 + (piece.unit_begin == all.tile.unit_begin ? 1 : 0) : -1;
  }
  __syncthreads();
  return count;
}

// Joins the pieces of a tile and writes its rows: a thread has four columns of a row.
template <AttendSm80Config kC>
FULMEN_FN void join_pieces(const AttendSm80Params& params, const PlanView& plan, const AttendItem& item,
                           const AttendSmem<kC>& smem) {
  const int count = list_pieces<kC>(params, plan, item, smem);
  const int quads = ceil_div(params.head_dim_vo, 4);
  const int num_rows = item.piece.tile.num_rows;
  for (int i = threadIdx.x; i < num_rows * quads; i += kC.num_threads()) {
    const int r = i / quads, column = 4 * (i - r * quads);
    float m = -infinity();
#pragma unroll 2
    for (int p = 0; p < count; ++p) {
      const int slot = smem.slots()[p];
      if (slot >= 0) m = fmaxf(m, slot_at(params, kC.tile_q(), slot).m[r]);
    }
    const float base = m == -infinity() ? 0.0f : m;
    float l = 0.0f, o[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
    for (int p = 0; p < count; ++p) {
      const int index = smem.slots()[p];
      if (index < 0) continue;
      const Slot slot = slot_at(params, kC.tile_q(), index);
      const float weight = ptx::ex2_approx(slot.m[r] - base);
      const float4 part = *reinterpret_cast<const float4*>(slot.o + r * slot.stride + column);
      l = fma(weight, slot.l[r], l);
      o[0] = fma(weight, part.x, o[0]);
      o[1] = fma(weight, part.y, o[1]);
      o[2] = fma(weight, part.z, o[2]);
      o[3] = fma(weight, part.w, o[3]);
    }
    const AttendRow row = make_row(params, plan, item, r);
    if (row.token < 0) continue;
    const RowEnd end = end_row<kC>(params, row.head, m, l);
    void* out = output_row<kC.o_dtype>(params, row);
    store_pair<kC>(out, column, o[0] * end.scale, o[1] * end.scale);
    store_pair<kC>(out, column + 2, o[2] * end.scale, o[3] * end.scale);
    if (column == 0) store_lse<kC>(params, row, end.m, end.l);
  }
}

}  // namespace fulmen
