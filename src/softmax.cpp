#include "cpu/ops.hpp"
#include "cuda/row_ops.hpp"
#include "sampling_entry.hpp"

using namespace fulmen;

extern "C" fulmen_status fulmen_softmax(fulmen_context* handle, const fulmen_softmax_args* given,
                                        fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "softmax";
    fulmen_context& context = deref(op, handle);
    const auto args = read_args(op, "args", given);

    Sym num_rows{"num_rows"}, vocab{"vocab"};
    check_rows(op, "logits", args.logits, kFloatDtypes, num_rows, vocab, context);
    check_rows(op, "probs", args.probs, {FULMEN_F32}, num_rows, vocab, context);
    Check(op, "probs", args.probs).distinct().apart_from("logits", args.logits, true);

    SoftmaxParams p{};
    p.temperatures = row_values<float>(op, "temperatures", args.temperatures, num_rows, FULMEN_F32, context);
    p.temperature = args.temperature == 0.0f ? 1.0f : args.temperature;
    require(p.temperatures != nullptr || (p.temperature > 0.0f && std::isfinite(p.temperature)),
            "softmax: temperature: expected a finite number of at least 0, found {}", args.temperature);
    p.logits = args.logits.data;
    p.probs = static_cast<float*>(args.probs.data);
    p.logits_stride = args.logits.stride[0];
    p.probs_stride = args.probs.stride[0];
    p.num_rows = num_rows;
    p.vocab = checked_vocab(op, "logits", args.logits, vocab, num_rows);
    p.dtype = static_cast<DType>(args.logits.dtype);
    if (p.num_rows == 0) return;
    if (!context.is_cpu()) return cuda::softmax(p, context, stream);
    cpu::softmax(p, context.pool);
  });
}
