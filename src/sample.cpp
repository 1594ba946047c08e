#include "cpu/ops.hpp"
#include "cuda/row_ops.hpp"
#include "sampling_entry.hpp"

using namespace fulmen;

namespace {

const uint64_t* seed_values(const char* name, const fulmen_tensor& t, Sym& num_rows,
                            const fulmen_context& context) {
  if (!present(t)) return nullptr;
  check_vector("sample", name, t, num_rows, {FULMEN_U64, FULMEN_I64}, context);
  return static_cast<const uint64_t*>(t.data);
}

}  // namespace

extern "C" fulmen_status fulmen_sample(fulmen_context* handle, const fulmen_sample_args* given,
                                       fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "sample";
    fulmen_context& context = deref(op, handle);
    const auto args = read_args(op, "args", given);

    Sym num_input_rows{"num_input_rows"}, num_rows{"num_rows"}, vocab{"vocab"};
    check_words(op, args.input, args.input_is_probs != 0, num_input_rows, vocab, context);
    if (!present(args.row_ids)) num_rows = {"num_rows", num_input_rows.value};
    check_vector(op, "tokens", args.tokens, num_rows, {FULMEN_I32}, context);

    SampleParams p{};
    p.row_ids = row_values<int32_t>(op, "row_ids", args.row_ids, num_rows, FULMEN_I32, context);
    p.seeds = seed_values("seeds", args.seeds, num_rows, context);
    p.offsets = seed_values("offsets", args.offsets, num_rows, context);
    p.logprob =
        const_cast<float*>(row_values<float>(op, "logprob", args.logprob, num_rows, FULMEN_F32, context));
    p.input_is_probs = args.input_is_probs != 0;
    p.filter = filter_params(op, args.filter, num_rows, p.input_is_probs, context);
    p.input = args.input.data;
    p.tokens = static_cast<int32_t*>(args.tokens.data);
    p.seed = args.seed;
    p.offset = args.offset;
    p.input_stride = args.input.stride[0];
    p.num_input_rows = num_input_rows;
    p.num_rows = num_rows;
    p.vocab = checked_vocab(op, "input", args.input, vocab, num_rows);
    p.dtype = static_cast<DType>(args.input.dtype);
    Check(op, "tokens", args.tokens).apart_from("input", args.input);
    Check(op, "logprob", args.logprob).apart_from("input", args.input).apart_from("tokens", args.tokens);
    if (p.num_rows == 0) return;
    if (!context.is_cpu()) return cuda::sample(p, context, stream);
    cpu::sample(p, context.pool);
  });
}
