// o[r,h,:] = sum_p exp(part_lse[p,r,h] - lse[r,h]) part_o[p,r,h,:], lse = ln sum_p exp(part_lse[p,r,h]); parts in order. Or in
// base 2 throughout.
// Part 0 may lie apart from the others (merge_state). Strides in elements; the innermost dimension of o has stride 1.
#pragma once
#include <kernels/prelude/prelude.hpp>

namespace fulmen {

struct MergePart {
  const void* o;     // dtype [num_rows, num_heads, head_dim]
  const float* lse;  // [num_rows, num_heads]
  int64_t o_stride_row, o_stride_head, lse_stride_row, lse_stride_head;
};

struct MergeStatesParams {
  MergePart first, second;             // parts 0 and 1
  int64_t o_stride_part, lse_stride_part;  // from part 1 on: part p lies (p - 1) strides after part 1
  void* o;                             // may be a part's
  float* lse;                          // nullable, may be a part's
  int64_t o_stride_row, o_stride_head, lse_stride_row, lse_stride_head;
  float lse_unit, log_unit;            // ln of the base of all lse, and 1 over it
  int64_t num_parts, num_rows;
  int32_t num_heads, head_dim;
  DType dtype;
};

FULMEN_FN const float* merge_lse(const MergeStatesParams& p, int64_t part, int64_t row, int64_t head) {
  const MergePart& from = part == 0 ? p.first : p.second;
  return from.lse + (part == 0 ? 0 : (part - 1) * p.lse_stride_part) + row * from.lse_stride_row +
         head * from.lse_stride_head;
}
// In elements of dtype from the part's o.
FULMEN_FN int64_t merge_offset(const MergeStatesParams& p, int64_t part, int64_t row, int64_t head) {
  const MergePart& from = part == 0 ? p.first : p.second;
  return (part == 0 ? 0 : (part - 1) * p.o_stride_part) + row * from.o_stride_row + head * from.o_stride_head;
}

}  // namespace fulmen
