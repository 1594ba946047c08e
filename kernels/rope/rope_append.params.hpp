#pragma once

#include <kernels/append_kv/append_kv.params.hpp>
#include <kernels/rope/rope.params.hpp>

namespace fulmen {

// rope and append_kv of the same tokens: q -> q_out rotated; k rotated and v as it is into the cache. Of `rope` k_out and
// its strides, of `append` k and its strides are not used.
struct RopeAppendParams {
  RopeParams rope;
  AppendKvParams append;
};
static_assert(sizeof(RopeAppendParams) <= 4000, "kernel parameters are limited to 4 KiB");

}  // namespace fulmen
