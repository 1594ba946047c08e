#include <kernels/merge/merge_states.params.hpp>

#include "cpu/merge_states.hpp"
#include "cuda/merge_states.hpp"
#include "entry.hpp"

using namespace fulmen;

namespace {

constexpr int64_t kMostParts = int64_t{1} << 20;

struct Sizes {
  Sym num_rows{"num_rows"}, num_heads{"num_heads"}, head_dim{"head_dim"};
};

void check_lse(const char* op, const char* name, const fulmen_tensor& t, Sizes& sizes, const fulmen_context& context) {
  Check(op, name, t).present().dtype({FULMEN_F32}).dims({sizes.num_rows, sizes.num_heads}).aligned();
  check_device(op, name, t, context);
}

void check_o(const char* op, const char* name, const fulmen_tensor& t, Sizes& sizes, const fulmen_context& context) {
  Check(op, name, t).present().dtype(kFloatDtypes).dims({sizes.num_rows, sizes.num_heads, sizes.head_dim}).rows().aligned();
  check_device(op, name, t, context);
}

void run(const char* op, fulmen_context& context, MergeStatesParams& p, const Sizes& sizes, const fulmen_tensor& o,
         const fulmen_tensor& lse, int32_t lse_base2, fulmen_stream stream) {
  require(lse_base2 == 0 || lse_base2 == 1, "{}: lse_base2: expected 0 or 1, found {}", op, lse_base2);
  p.lse_unit = lse_base2 != 0 ? 0.69314718055994531f : 1.0f;
  p.log_unit = lse_base2 != 0 ? 1.44269504088896341f : 1.0f;
  p.num_rows = sizes.num_rows;
  p.num_heads = checked_int32(op, "num_heads", sizes.num_heads);
  p.head_dim = checked_int32(op, "head_dim", sizes.head_dim);
  p.dtype = static_cast<DType>(o.dtype);
  p.o = o.data, p.o_stride_row = o.stride[0], p.o_stride_head = o.stride[1];
  if (present(lse)) {
    p.lse = static_cast<float*>(lse.data), p.lse_stride_row = lse.stride[0], p.lse_stride_head = lse.stride[1];
  }
  Check(op, "o", o).distinct().apart_from("lse", lse);
  if (present(lse)) Check(op, "lse", lse).distinct();
  if (p.num_rows == 0 || p.num_heads == 0 || p.head_dim == 0) return;
  if (!context.is_cpu()) return cuda::merge_states(p, context, stream);
  cpu::merge_states(p, context.pool);
}

}  // namespace

extern "C" fulmen_status fulmen_merge_states(fulmen_context* handle, const fulmen_merge_states_args* given,
                                             fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "merge_states";
    fulmen_context& context = deref(op, handle);
    const auto args = read_args(op, "args", given);
    Sizes sizes;
    Sym num_parts{"num_parts"};
    check_o(op, "o", args.o, sizes, context);
    if (present(args.lse)) check_lse(op, "lse", args.lse, sizes, context);
    Check(op, "part_o", args.part_o).present().same_dtype("o", args.o)
        .dims({num_parts, sizes.num_rows, sizes.num_heads, sizes.head_dim}).rows().aligned();
    Check(op, "part_lse", args.part_lse).present().dtype({FULMEN_F32})
        .dims({num_parts, sizes.num_rows, sizes.num_heads}).aligned();
    check_device(op, "part_o", args.part_o, context);
    check_device(op, "part_lse", args.part_lse, context);
    // Each thread keeps a weight per part.
    require(num_parts <= kMostParts, "{}: part_o: expected at most {} parts, found {}", op, kMostParts, num_parts.value);
    Check(op, "o", args.o).apart_from("part_o", args.part_o).apart_from("part_lse", args.part_lse);
    if (present(args.lse)) Check(op, "lse", args.lse).apart_from("part_o", args.part_o).apart_from("part_lse", args.part_lse);
    MergeStatesParams p{};
    p.num_parts = num_parts;
    p.first = {args.part_o.data, static_cast<const float*>(args.part_lse.data), args.part_o.stride[1],
               args.part_o.stride[2], args.part_lse.stride[1], args.part_lse.stride[2]};
    p.second = p.first;
    p.o_stride_part = args.part_o.stride[0];
    p.lse_stride_part = args.part_lse.stride[0];
    if (num_parts > 1) {
      p.second.o = static_cast<const char*>(p.first.o) + p.o_stride_part * dtype_size(args.o.dtype);
      p.second.lse = p.first.lse + p.lse_stride_part;
    }
    run(op, context, p, sizes, args.o, args.lse, args.lse_base2, stream);
  });
}

extern "C" fulmen_status fulmen_merge_state(fulmen_context* handle, const fulmen_merge_state_args* given,
                                            fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "merge_state";
    fulmen_context& context = deref(op, handle);
    const auto args = read_args(op, "args", given);
    Sizes sizes;
    check_o(op, "o_a", args.o_a, sizes, context);
    check_o(op, "o_b", args.o_b, sizes, context);
    check_o(op, "o", args.o, sizes, context);
    Check(op, "o_b", args.o_b).same_dtype("o_a", args.o_a);
    Check(op, "o", args.o).same_dtype("o_a", args.o_a);
    check_lse(op, "lse_a", args.lse_a, sizes, context);
    check_lse(op, "lse_b", args.lse_b, sizes, context);
    if (present(args.lse)) check_lse(op, "lse", args.lse, sizes, context);
    Check(op, "o", args.o).apart_from("o_a", args.o_a, true).apart_from("o_b", args.o_b, true).apart_from("lse_a", args.lse_a).apart_from("lse_b", args.lse_b);
    if (present(args.lse)) {
      Check(op, "lse", args.lse).apart_from("lse_a", args.lse_a, true).apart_from("lse_b", args.lse_b, true)
          .apart_from("o_a", args.o_a).apart_from("o_b", args.o_b);
    }
    const auto part = [](const fulmen_tensor& o, const fulmen_tensor& lse) {
      return MergePart{o.data, static_cast<const float*>(lse.data), o.stride[0], o.stride[1], lse.stride[0], lse.stride[1]};
    };
    MergeStatesParams p{};
    p.num_parts = 2;
    p.first = part(args.o_a, args.lse_a);
    p.second = part(args.o_b, args.lse_b);
    run(op, context, p, sizes, args.o, args.lse, args.lse_base2, stream);
  });
}
