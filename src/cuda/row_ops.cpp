#include "cuda/row_ops.hpp"

#include "core/check.hpp"
#include "cuda/state.hpp"
#include "plan/act_and_mul.hpp"
#include "plan/alignment.hpp"
#include "plan/linear.hpp"
#include "plan/norm.hpp"
#include "plan/rope.hpp"
#include "plan/sampling.hpp"

namespace fulmen::cuda {
namespace {

// Finds the kernel of (op, config) and launches it.
template <class Config, class Params>
void launch(const char* op, const Config& config, Unit (*unit)(const Config&), int64_t grid, const Params& params,
            fulmen_context& context, void* handle) {
  State& state = state_of(context);
  const StreamScope scope(state.device().index, handle);
  const LoadedKernel& kernel =
      state.kernel(std::string(op) + json(config), scope.stream(), [&] { return unit(config); });
  state.launch(kernel, scope.stream(), grid, &params);
}

const Target& target(fulmen_context& context) { return state_of(context).target(); }

void check_vocab(const char* op, const char* name, int64_t vocab) {
  if (vocab > kMaxCudaVocab) {
    fail(FULMEN_UNSUPPORTED, "{}: {}: expected at most {} words on cuda, found {}", op, name, kMaxCudaVocab, vocab);
  }
}

void check_rows(const char* op, int64_t rows) {
  if (rows > 0x7fffffff) fail(FULMEN_UNSUPPORTED, "{}: x: expected at most 2^31 - 1 rows on cuda, found {}", op, rows);
}

}  // namespace

void rms_norm(const RmsNormParams& p, fulmen_context& context, void* stream) {
  check_rows("rms_norm", p.num_tokens * p.num_heads);
  const NormConfig config = choose_rms_norm(p);
  launch("rms_norm", config, rms_norm_unit, norm_grid(config, p.num_tokens * p.num_heads, target(context)), p, context, stream);
}

void layer_norm(const LayerNormParams& p, fulmen_context& context, void* stream) {
  check_rows("layer_norm", p.num_tokens * p.num_heads);
  const NormConfig config = choose_layer_norm(p);
  launch("layer_norm", config, layer_norm_unit, norm_grid(config, p.num_tokens * p.num_heads, target(context)), p, context, stream);
}

void act_and_mul(const ActAndMulParams& p, fulmen_context& context, void* stream) {
  const ActAndMulConfig config = choose_act_and_mul(p);
  launch("act_and_mul", config, act_and_mul_unit, act_and_mul_grid(config, p, target(context)), p, context, stream);
}

void rope(const RopeParams& p, fulmen_context& context, void* stream) {
  const RopeConfig config = choose_rope(p);
  launch("rope", config, rope_unit, rope_grid(config, p, target(context)), p, context, stream);
}

void rope_append(const RopeAppendParams& p, fulmen_context& context, void* stream) {
  const RopeConfig config = choose_rope_append(p);
  launch("rope_append", config, rope_append_unit, rope_grid(config, p.rope, target(context)), p, context, stream);
}

void linear(const LinearParams& p, fulmen_context& context, void* stream) {
  if (p.num_rows > kLinearMaxRows) {
    fail(FULMEN_UNSUPPORTED, "linear: x: expected at most {} rows on cuda, found {}; more are a matrix product's", kLinearMaxRows,
         p.num_rows);
  }
  if (!is_aligned(p.x, {p.x_stride, p.k}, 2, 16) || !is_aligned(p.w, {p.w_stride}, 2, 16)) {
    fail(FULMEN_UNSUPPORTED, "linear: x, w: expected addresses, strides and k = {} of whole 16 bytes on cuda, found others", p.k);
  }
  const LinearConfig config = choose_linear(p);
  launch("linear", config, linear_unit, linear_grid(config, p), p, context, stream);
}

void softmax(const SoftmaxParams& p, fulmen_context& context, void* stream) {
  const auto config = choose_sampling(p.dtype, p.logits, p.logits_stride, false);
  launch("softmax", config, softmax_unit, sampling_grid(p.num_rows, target(context)), p, context, stream);
}

void argmax(const ArgmaxParams& p, fulmen_context& context, void* stream) {
  const auto config = choose_sampling(p.dtype, p.x, p.x_stride, false);
  launch("argmax", config, argmax_unit, sampling_grid(p.num_rows, target(context)), p, context, stream);
}

void sample(const SampleParams& p, fulmen_context& context, void* stream) {
  check_vocab("sample", "input", p.vocab);
  const auto config = choose_sampling(p.dtype, p.input, p.input_stride, true);
  launch("sample", config, sample_unit, sampling_grid(p.num_rows, target(context)), p, context, stream);
}

void filter(const FilterOpParams& p, fulmen_context& context, void* stream) {
  check_vocab("filter", "input", p.vocab);
  const auto config = choose_sampling(p.dtype, p.input, p.input_stride, true);
  launch("filter", config, filter_unit, sampling_grid(p.num_rows, target(context)), p, context, stream);
}

void top_k(const TopKParams& p, fulmen_context& context, void* stream) {
  check_vocab("top_k", "x", p.n);
  if (p.k > kListSize) fail(FULMEN_UNSUPPORTED, "top_k: values: expected k of at most {} on cuda, found {}", kListSize, p.k);
  const auto config = choose_sampling(p.dtype, p.x, p.x_stride, true);
  launch("top_k", config, top_k_unit, sampling_grid(p.num_rows, target(context)), p, context, stream);
}

}  // namespace fulmen::cuda
