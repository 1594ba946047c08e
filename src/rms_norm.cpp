#include "cpu/ops.hpp"
#include "cuda/row_ops.hpp"
#include "norm_entry.hpp"

using namespace fulmen;

extern "C" fulmen_status fulmen_rms_norm(fulmen_context* handle, const fulmen_rms_norm_args* given,
                                         fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "rms_norm";
    fulmen_context& context = deref(op, handle);
    const auto args = read_args(op, "args", given);

    RowSizes sizes("hidden");
    auto p = norm_params<RmsNormParams>(op, args, sizes, context);
    if (present(args.residual)) {
      sizes.check(op, "residual", args.residual, context);
      Check(op, "residual", args.residual).same_dtype("x", args.x).distinct().apart_from("x", args.x).apart_from("weight", args.weight);
      Check(op, "out", args.out).apart_from("residual", args.residual);
    }
    const RowLayout residual = row_layout(args.residual);
    p.residual = args.residual.data;
    p.residual_stride_token = residual.stride_token, p.residual_stride_head = residual.stride_head;
    p.weight_offset = args.weight_offset;
    if (p.num_tokens == 0 || p.num_heads == 0 || p.hidden == 0) return;
    if (!context.is_cpu()) return cuda::rms_norm(p, context, stream);
    cpu::rms_norm(p, context.pool);
  });
}
