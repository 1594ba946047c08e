// What changes the machine code of attend_sm80, and what follows from it. Host and device.
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

// The built-in variants that a kernel is compiled with (AttentionFeature); what they do is in attend_variants.cuh.
struct AttendVariants {
  bool soft_cap = false, alibi = false, sinks = false, rope = false, custom_mask = false, no_softmax = false;
  bool user = false;  // the user's own, from source text

  bool operator==(const AttendVariants&) const = default;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("soft_cap", soft_cap);
    field("alibi", alibi);
    field("sinks", sinks);
    field("rope", rope);
    field("custom_mask", custom_mask);
    field("no_softmax", no_softmax);
    field("user", user);
  }
  constexpr bool score_rows() const { return alibi || custom_mask || user; }  // a score of theirs asks where its row stands
  constexpr bool read_rows() const { return rope || score_rows(); }
};

// Two classes of tile:
//   split_keys = false (prefill): every warp owns warp_rows packed rows, all warps share each K/V tile
//   split_keys = true  (decode):  all warps share 16 packed rows, each warp walks keys of its own
// With levels and split_keys a kernel has both: decode tiles for the requests' own keys, prefill tiles (shared()) for those
// that many requests share.
struct AttendSm80Config {
  static constexpr int kMaxWorkers = 512;  // that may hold pieces of one tile

  DType dtype;        // of q, k and v: bf16 or f16
  DType o_dtype;      // dtype, or f32
  int head_dim_qk;    // class: a multiple of 64, not below the true size
  int head_dim_vo;
  int warps;
  int warp_rows;      // 16 or 32; 16 with split_keys
  int step_keys;      // keys between two updates of the running maximum: 32 or 64
  int stages;         // K/V tiles in the ring (prefill: 2); tiles of K or V in each warp's ring (decode: 2 and more)
  int blocks_per_sm;
  bool split_keys;
  bool levels;        // several levels
  bool canonical = false;  // the order of arithmetic of math/canon.hpp
  int shared_warp_rows = 0, shared_step_keys = 0;  // of shared()
  AttendVariants variants = {};
  bool general = false;  // any address, stride and sm_scale: copies by element, logits before the softmax

  bool operator==(const AttendSm80Config&) const = default;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("dtype", dtype);
    field("o_dtype", o_dtype);
    field("head_dim_qk", head_dim_qk);
    field("head_dim_vo", head_dim_vo);
    field("warps", warps);
    field("warp_rows", warp_rows);
    field("step_keys", step_keys);
    field("stages", stages);
    field("blocks_per_sm", blocks_per_sm);
    field("split_keys", split_keys);
    field("levels", levels);
    field("canonical", canonical);
    field("shared_warp_rows", shared_warp_rows);
    field("shared_step_keys", shared_step_keys);
    field("variants", variants);
    field("general", general);
  }

  constexpr int num_threads() const { return 32 * warps; }
  constexpr int min_blocks() const { return blocks_per_sm; }
  constexpr int tile_q() const { return split_keys ? warp_rows : warps * warp_rows; }
  constexpr bool mixed() const { return levels && split_keys; }
  // The tiles of other levels than the last in a mixed kernel.
  constexpr AttendSm80Config shared() const {
    AttendSm80Config c = *this;
    c.split_keys = false;
    c.warp_rows = shared_warp_rows;
    c.step_keys = shared_step_keys;
    c.stages = 2;
    return c;
  }
  constexpr int max_tile_q() const { return mixed() ? shared().tile_q() : tile_q(); }
  // Scores become logits in units of log2 one by one, instead of by a factor inside the exponential.
  constexpr bool makes_logits() const {
    return variants.soft_cap || variants.alibi || variants.no_softmax || variants.user || general;
  }
  constexpr int max_dim() const { return head_dim_qk < head_dim_vo ? head_dim_vo : head_dim_qk; }

  // Shared memory, in this order; every offset is a multiple of 128.
  constexpr int ring_bytes() const {
    return split_keys ? warps * stages * step_keys * max_dim() * 2
                      : stages * step_keys * (head_dim_qk + head_dim_vo) * 2;
  }
  // prefill: Q, and O where it was. decode: what the warps join at the end of an item (below).
  constexpr int merge_stride() const { return head_dim_vo + 8; }  // floats; 8: rows fall on different banks
  constexpr int q_bytes() const {
    return split_keys ? warps * warp_rows * (merge_stride() + 2) * 4
                      : tile_q() * max_dim() * 2;
  }
  // Places of K and V: of the keys that each warp copies (decode), or of two spans of a group a thread (prefill).
  constexpr int key_place_bytes() const { return 8 * (split_keys ? warps * step_keys : 2 * num_threads()); }
  // AttendRow of each row, then VariantRow
  constexpr int row_bytes() const { return split_keys ? 0 : tile_q() * (variants.read_rows() ? 16 + 32 : 16); }
  constexpr int queue_bytes() const { return (split_keys ? warps : 1) * (levels || canonical ? 2048 : 1536); }  // cursors and items
  // What a block joins: a slot per worker; with canon its units too; with levels tiles whose states are all there.
  constexpr int join_bytes() const { return canonical ? 12 * kMaxWorkers : levels ? 4096 : 4 * kMaxWorkers; }
  constexpr int own_smem_bytes() const {
    return ring_bytes() + q_bytes() + key_place_bytes() + row_bytes() + queue_bytes() + join_bytes() + 256;  // flags
  }
  constexpr int smem_bytes() const {
    const int own = own_smem_bytes(), other = mixed() ? shared().own_smem_bytes() : 0;
    return own < other ? other : own;
  }
};

}  // namespace fulmen
