// Attention for every GPU since Ampere: mma.sync m16n8k16, ldmatrix, cp.async.
//
// formula   t = sm_scale log2(e) q.k; o = sum_j 2^(t_j - m) v_j / sum_j 2^(t_j - m); lse = lse_unit (m + log2 sum)
// grid      persistent, one block per worker of the schedule (schedule.hpp): either whole tiles by a counter, or an
//           equal share of the line of costs, whose first and last tile other blocks continue
// prefill   warps x warp_rows packed rows; K and V tiles of step_keys keys go round a ring of two that all warps read
// decode    16 packed rows, held by every warp; each warp walks its own run of the item's keys with a ring of its own
//           (no barrier of the block inside an item), and the warps' states are joined at the item's end
// pieces    a piece of a tile leaves (o, m, l) in a slot of scratch; who finds that all units of the tile have arrived
//           joins the slots in order of keys, so the bits don't depend on who it was
// smem      ring | Q, then O (prefill) or the warps' states (decode) | key offsets | rows | items | slots to join
// barriers  prefill: one per K/V tile. Behind it the tile has landed for all, and the other stage is free for copies
//           decode:  __syncwarp per half step (a tile of K, then of V), with the same meaning for the warp's own ring
// invariant a key outside [key_begin, key_end) is zeros in shared memory and minus infinity among the scores, so that
//           what lies in unwritten cache slots cannot reach o; such keys' pages are never looked up
// more      docs/kernels/attend_sm80.md
#pragma once

#include <kernels/attention/attend_decode.cuh>
#include <kernels/attention/attend_prefill.cuh>
#include <kernels/ptx/griddep.cuh>
#include <kernels/tile/shared.cuh>

namespace fulmen {

template <AttendSm80Config kC>
FULMEN_FN void attend_sm80(const AttendSm80Params& params) {
  const AttendSmem<kC> smem{dynamic_shared()};
  const PlanView plan(params.shape, params.plan);
  ptx::griddep_launch_dependents();
  if constexpr (kC.split_keys && !kC.levels) clear_queues<kC>(smem);
  ptx::griddep_wait();
  const int32_t levels = params.shape.num_levels;
  if constexpr (kC.mixed()) {
    constexpr AttendSm80Config kShared = kC.shared();
    attend_prefill<kShared>(params, plan, AttendSmem<kShared>{smem.base}, levels - 1);
    __syncthreads();  // shared memory is laid out anew
    clear_queues<kC>(smem);
  }
  if constexpr (kC.split_keys) {
    attend_decode<kC>(params, plan, smem);
  } else {
    attend_prefill<kC>(params, plan, smem, levels);
  }
}

}  // namespace fulmen
