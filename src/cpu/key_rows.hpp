// Where the keys of a tile lie: a row of K and V for each key of a block, through the block tables of its levels.
#pragma once

#include <kernels/attention/attention.params.hpp>

#include "cpu/attention_engine.hpp"

namespace fulmen::cpu {

// What stands in for a key whose page doesn't exist, kMaxHeadDim long: NaN in each dtype.
const void* missing_row(DType dtype);

// The first fault of plan or of any run stays in the plan's status record.
void report(const AttentionParams& p, int32_t code, int32_t level, int32_t request, int64_t value, int64_t limit);

struct Link {  // a segment of a chain of levels
  int32_t level, segment;
  int64_t key_begin, key_end;
  PageList k, v;
};

// The chain of segments that a tile's keys come from.
struct Chain {
  const AttentionParams& p;
  Link links[kMaxLevels];
  int32_t count = 0;

  Chain(const AttentionParams& params, const PlanView& plan, const Segment& s);
  // Pointers to keys [begin, end) of the block at base; the block's other keys are kZeroRow.
  void rows(int32_t base, int64_t begin, int64_t end, int32_t head, const void** k, const void** v) const;
};

}  // namespace fulmen::cpu
