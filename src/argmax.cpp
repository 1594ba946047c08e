#include "cpu/ops.hpp"
#include "cuda/row_ops.hpp"
#include "entry.hpp"

using namespace fulmen;

extern "C" fulmen_status fulmen_argmax(fulmen_context* handle, const fulmen_argmax_args* given,
                                       fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "argmax";
    fulmen_context& context = deref(op, handle);
    const auto args = read_args(op, "args", given);

    Sym num_rows{"num_rows"}, n{"n"};
    check_rows(op, "x", args.x, kFloatDtypes, num_rows, n, context);
    check_vector(op, "index", args.index, num_rows, {FULMEN_I32}, context);
    Check(op, "index", args.index).apart_from("x", args.x);
    require(n > 0 || num_rows == 0, "argmax: x: expected at least one value per row, found {}",
            shape_text(args.x));

    ArgmaxParams p{};
    p.x = args.x.data;
    p.index = static_cast<int32_t*>(args.index.data);
    p.x_stride = args.x.stride[0];
    p.num_rows = num_rows;
    p.n = checked_int32(op, "n", n);
    p.dtype = static_cast<DType>(args.x.dtype);
    if (p.num_rows == 0) return;
    if (!context.is_cpu()) return cuda::argmax(p, context, stream);
    cpu::argmax(p, context.pool);
  });
}
