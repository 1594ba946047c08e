#include "cpu/ops.hpp"
#include "cuda/row_ops.hpp"
#include "sampling_entry.hpp"

using namespace fulmen;

extern "C" fulmen_status fulmen_filter(fulmen_context* handle, const fulmen_filter_args* given,
                                       fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "filter";
    fulmen_context& context = deref(op, handle);
    const auto args = read_args(op, "args", given);

    Sym num_rows{"num_rows"}, vocab{"vocab"};
    check_words(op, args.input, args.input_is_probs != 0, num_rows, vocab, context);
    check_rows(op, "output", args.output, {FULMEN_F32}, num_rows, vocab, context);
    Check(op, "output", args.output).distinct().apart_from("input", args.input, true);
    require(!(args.input_is_probs && args.output_is_logits),
            "filter: output_is_logits: expected 0 with probabilities as input, found {}",
            args.output_is_logits);

    FilterOpParams p{};
    p.input_is_probs = args.input_is_probs != 0;
    p.output_is_logits = args.output_is_logits != 0;
    p.filter = filter_params(op, args.filter, num_rows, p.input_is_probs, context);
    p.input = args.input.data;
    p.output = static_cast<float*>(args.output.data);
    p.input_stride = args.input.stride[0];
    p.output_stride = args.output.stride[0];
    p.num_rows = num_rows;
    p.vocab = checked_vocab(op, "input", args.input, vocab, num_rows);
    p.dtype = static_cast<DType>(args.input.dtype);
    if (p.num_rows == 0) return;
    if (!context.is_cpu()) return cuda::filter(p, context, stream);
    cpu::filter(p, context.pool);
  });
}
