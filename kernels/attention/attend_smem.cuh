// Shared memory of attend_sm80: ring | Q, then O or the warps' states | places of keys | rows | items | slots to join.
#pragma once

#include <kernels/attention/attend_variants.cuh>

namespace fulmen {

// What a warp's rows see: they need no mask in [all_lo, all_hi) and nothing outside [any_lo, any_hi).
struct WarpView {
  int all_lo, all_hi, any_lo, any_hi;
};

template <AttendSm80Config kC>
struct AttendSmem {
  unsigned char* base;

  FULMEN_FN unsigned char* ring() const { return base; }
  FULMEN_FN unsigned char* q() const { return base + kC.ring_bytes(); }
  // Places of K's rows, then of V's, of warp `i` (decode) or of the block (prefill, i = 0).
  FULMEN_FN uint32_t* places(int i) const { return reinterpret_cast<uint32_t*>(q() + kC.q_bytes()) + i * 2 * kC.step_keys; }
  FULMEN_FN AttendRow* rows() const { return reinterpret_cast<AttendRow*>(q() + kC.q_bytes() + kC.key_place_bytes()); }
  FULMEN_FN VariantRow* variant_rows() const { return reinterpret_cast<VariantRow*>(rows() + kC.tile_q()); }
  FULMEN_FN unsigned char* queue() const { return reinterpret_cast<unsigned char*>(rows()) + kC.row_bytes(); }
  FULMEN_FN unsigned char* at(uint32_t address) const { return base + (address - ptx::shared_address(base)); }
  FULMEN_FN int32_t* slots() const { return reinterpret_cast<int32_t*>(queue() + kC.queue_bytes()); }
  FULMEN_FN int32_t* flags() const { return slots() + kC.join_bytes() / 4; }
  FULMEN_FN WarpView* views() const { return reinterpret_cast<WarpView*>(flags() + 8); }  // prefill, per warp
  // decode
  FULMEN_FN float* warp_o(int warp) const {
    return reinterpret_cast<float*>(q()) + warp * kC.warp_rows * kC.merge_stride();
  }
  FULMEN_FN float* warp_m() const { return reinterpret_cast<float*>(q()) + kC.warps * kC.warp_rows * kC.merge_stride(); }
  FULMEN_FN float* warp_l() const { return warp_m() + kC.warps * kC.warp_rows; }
};

enum AttendFlag : int { kFlagBadPage = 0, kFlagIsLast = 1, kFlagMore = 2, kFlagReady = 3 };

}  // namespace fulmen
