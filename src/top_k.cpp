#include "cpu/ops.hpp"
#include "cuda/row_ops.hpp"
#include "entry.hpp"

using namespace fulmen;

extern "C" fulmen_status fulmen_top_k(fulmen_context* handle, const fulmen_top_k_args* given, fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "top_k";
    fulmen_context& context = deref(op, handle);
    const auto args = read_args(op, "args", given);

    Sym num_rows{"num_rows"}, n{"n"}, k{"k"};
    check_rows(op, "x", args.x, kFloatDtypes, num_rows, n, context);
    check_rows(op, "values", args.values, {args.x.dtype}, num_rows, k, context);
    check_rows(op, "indices", args.indices, {FULMEN_I32}, num_rows, k, context);
    Check(op, "values", args.values).distinct().apart_from("x", args.x);
    Check(op, "indices", args.indices).distinct().apart_from("x", args.x).apart_from("values", args.values);
    require(k <= n, "top_k: values: expected k at most n = {}, found {}", n.value, k.value);

    TopKParams p{};
    p.x = args.x.data;
    p.values = args.values.data;
    p.indices = static_cast<int32_t*>(args.indices.data);
    p.x_stride = args.x.stride[0];
    p.values_stride = args.values.stride[0];
    p.indices_stride = args.indices.stride[0];
    p.num_rows = num_rows;
    p.n = checked_int32(op, "n", n);
    p.k = static_cast<int32_t>(k.value);
    p.dtype = static_cast<DType>(args.x.dtype);
    if (p.num_rows == 0 || p.k == 0) return;
    if (!context.is_cpu()) return cuda::top_k(p, context, stream);
    cpu::top_k(p, context.pool);
  });
}
