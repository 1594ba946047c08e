#include "cpu/ops.hpp"
#include "cuda/row_ops.hpp"
#include "entry.hpp"

using namespace fulmen;

extern "C" fulmen_status fulmen_layer_norm(fulmen_context* handle, const fulmen_layer_norm_args* given,
                                           fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "layer_norm";
    fulmen_context& context = deref(op, handle);
    const auto args = read_args(op, "args", given);

    RowSizes sizes("hidden");
    sizes.check(op, "x", args.x, context);
    Check(op, "x", args.x).dtype(kFloatDtypes);
    check_vector(op, "weight", args.weight, sizes.width, {args.x.dtype, FULMEN_F32}, context);
    if (present(args.bias)) check_vector(op, "bias", args.bias, sizes.width, {args.weight.dtype}, context);
    sizes.check(op, "out", args.out, context);
    Check(op, "out", args.out).same_dtype("x", args.x);
    Check(op, "out", args.out).distinct().apart_from("x", args.x, true).apart_from("weight", args.weight).apart_from("bias", args.bias);
    require(args.eps >= 0.0f, "layer_norm: eps: expected at least 0, found {}", args.eps);

    const RowLayout x = row_layout(args.x), out = row_layout(args.out);
    LayerNormParams p{};
    p.x = args.x.data;
    p.weight = args.weight.data;
    p.bias = args.bias.data;
    p.out = args.out.data;
    p.x_stride_token = x.stride_token, p.x_stride_head = x.stride_head;
    p.out_stride_token = out.stride_token, p.out_stride_head = out.stride_head;
    p.num_tokens = sizes.num_tokens;
    p.num_heads = checked_int32(op, "num_heads", sizes.heads());
    p.hidden = checked_int32(op, "hidden", sizes.width);
    p.dtype = static_cast<DType>(args.x.dtype);
    p.weight_dtype = static_cast<DType>(args.weight.dtype);
    p.eps = args.eps;
    if (p.num_tokens == 0 || p.num_heads == 0 || p.hidden == 0) return;
    if (!context.is_cpu()) return cuda::layer_norm(p, context, stream);
    cpu::layer_norm(p, context.pool);
  });
}
