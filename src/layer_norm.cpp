#include "cpu/ops.hpp"
#include "cuda/row_ops.hpp"
#include "norm_entry.hpp"

using namespace fulmen;

extern "C" fulmen_status fulmen_layer_norm(fulmen_context* handle, const fulmen_layer_norm_args* given,
                                           fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "layer_norm";
    fulmen_context& context = deref(op, handle);
    const auto args = read_args(op, "args", given);

    RowSizes sizes("hidden");
    auto p = norm_params<LayerNormParams>(op, args, sizes, context);
    if (present(args.bias)) {
      check_vector(op, "bias", args.bias, sizes.width, {args.weight.dtype}, context);
      Check(op, "out", args.out).apart_from("bias", args.bias);
    }
    p.bias = args.bias.data;
    if (p.num_tokens == 0 || p.num_heads == 0 || p.hidden == 0) return;
    if (!context.is_cpu()) return cuda::layer_norm(p, context, stream);
    cpu::layer_norm(p, context.pool);
  });
}
