#include "cpu/ops.hpp"
#include "cuda/row_ops.hpp"
#include "entry.hpp"

using namespace fulmen;

extern "C" fulmen_status fulmen_linear(fulmen_context* handle, const fulmen_linear_args* given, fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "linear";
    fulmen_context& context = deref(op, handle);
    const auto args = read_args(op, "args", given);
    const bool gated = args.gated != 0;

    Sym num_rows{"num_rows"}, k{"k"}, n{"n"};
    Check(op, "x", args.x).present().dtype({FULMEN_F16, FULMEN_BF16}).dims({num_rows, k}).rows().aligned();
    Check(op, "w", args.w).present().same_dtype("x", args.x).dims({n, k}).rows().aligned();
    require(!gated || n % 2 == 0, "{}: w: expected an even number of rows (gated), found {}", op, n.value);
    const int64_t width = gated ? n / 2 : n.value;
    const Check y(op, "y", args.y);
    y.present().dims({num_rows, width}).rows().aligned();
    if (gated) y.same_dtype("x", args.x);
    else y.dtype({args.x.dtype, FULMEN_F32});
    if (present(args.bias)) check_vector(op, "bias", args.bias, n, {args.x.dtype}, context);
    if (present(args.residual)) {
      Check(op, "residual", args.residual).present().same_dtype("x", args.x).dims({num_rows, width}).rows().aligned();
      check_device(op, "residual", args.residual, context);
    }
    check_device(op, "x", args.x, context);
    check_device(op, "w", args.w, context);
    check_device(op, "y", args.y, context);
    y.distinct().apart_from("x", args.x).apart_from("w", args.w).apart_from("residual", args.residual, true);
    if (present(args.bias)) y.apart_from("bias", args.bias);
    require(!gated || (args.activation >= FULMEN_SILU && args.activation <= FULMEN_GELU_TANH),
            "{}: activation: expected a fulmen_activation, found {}", op, args.activation);
    require(args.rms_eps >= 0.0f, "{}: rms_eps: expected at least 0, found {}", op, args.rms_eps);

    LinearParams p{};
    p.x = args.x.data, p.x_stride = args.x.stride[0];
    p.w = args.w.data, p.w_stride = args.w.stride[0];
    p.bias = args.bias.data;
    p.residual = args.residual.data, p.residual_stride = args.residual.stride[0];
    p.y = args.y.data, p.y_stride = args.y.stride[0];
    p.num_rows = checked_int32(op, "num_rows", num_rows);
    p.n = checked_int32(op, "n", n);
    p.k = checked_int32(op, "k", k);
    p.rms_eps = args.rms_eps;
    p.dtype = static_cast<DType>(args.x.dtype);
    p.y_dtype = static_cast<DType>(args.y.dtype);
    p.gated = gated;
    p.activation = gated ? static_cast<Activation>(args.activation) : Activation::silu;
    if (p.num_rows == 0 || width == 0) return;
    if (!context.is_cpu()) return cuda::linear(p, context, stream);
    cpu::linear(p, context.pool);
  });
}
