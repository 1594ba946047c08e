// What rms_norm and layer_norm check and fill in alike.
#pragma once

#include "entry.hpp"

namespace fulmen {

// x, weight, out and eps of an op's Params; everything else of them is zero.
template <class Params, class Args>
Params norm_params(const char* op, const Args& args, RowSizes& sizes, const fulmen_context& context) {
  sizes.check(op, "x", args.x, context);
  Check(op, "x", args.x).dtype(kFloatDtypes);
  check_vector(op, "weight", args.weight, sizes.width, {args.x.dtype, FULMEN_F32}, context);
  sizes.check(op, "out", args.out, context);
  Check(op, "out", args.out).same_dtype("x", args.x).distinct().apart_from("x", args.x, true).apart_from("weight", args.weight);
  require(args.eps >= 0.0f, "{}: eps: expected at least 0, found {}", op, args.eps);

  const RowLayout x = row_layout(args.x), out = row_layout(args.out);
  Params p{};
  p.x = args.x.data;
  p.weight = args.weight.data;
  p.out = args.out.data;
  p.x_stride_token = x.stride_token, p.x_stride_head = x.stride_head;
  p.out_stride_token = out.stride_token, p.out_stride_head = out.stride_head;
  p.num_tokens = sizes.num_tokens;
  p.num_heads = checked_int32(op, "num_heads", sizes.heads());
  p.hidden = checked_int32(op, "hidden", sizes.width);
  p.dtype = static_cast<DType>(args.x.dtype);
  p.weight_dtype = static_cast<DType>(args.weight.dtype);
  p.eps = args.eps;
  return p;
}

}  // namespace fulmen
