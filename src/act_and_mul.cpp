#include "cpu/ops.hpp"
#include "cuda/row_ops.hpp"
#include "entry.hpp"

using namespace fulmen;

extern "C" fulmen_status fulmen_act_and_mul(fulmen_context* handle, const fulmen_act_and_mul_args* given,
                                            fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "act_and_mul";
    fulmen_context& context = deref(op, handle);
    const auto args = read_args(op, "args", given);

    Sym num_tokens{"num_tokens"}, width{"d"};
    Check(op, "out", args.out).present().dtype(kFloatDtypes).dims({num_tokens, width}).rows().aligned();
    check_device(op, "out", args.out, context);
    Check(op, "x", args.x)
        .present()
        .same_dtype("out", args.out)
        .dims({num_tokens, 2 * static_cast<int64_t>(checked_int32(op, "d", width))})
        .rows()
        .aligned();
    check_device(op, "x", args.x, context);
    Check(op, "out", args.out).distinct().apart_from("x", args.x);
    require(args.activation >= FULMEN_SILU && args.activation <= FULMEN_GELU_TANH,
            "act_and_mul: activation: expected a fulmen_activation, found {}", args.activation);

    ActAndMulParams p{};
    p.x = args.x.data;
    p.out = args.out.data;
    p.x_stride = args.x.stride[0];
    p.out_stride = args.out.stride[0];
    p.num_tokens = num_tokens;
    p.width = checked_int32(op, "d", width);
    p.dtype = static_cast<DType>(args.x.dtype);
    p.activation = static_cast<Activation>(args.activation);
    if (p.num_tokens == 0 || p.width == 0) return;
    if (!context.is_cpu()) return cuda::act_and_mul(p, context, stream);
    cpu::act_and_mul(p, context.pool);
  });
}
