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

void check_rows(const char* op, int64_t rows, int64_t most = 0x7fffffff) {
  if (rows > most) fail(FULMEN_UNSUPPORTED, "{}: x: expected at most {} rows on cuda, found {}", op, most, rows);
}

}  // namespace

void rms_norm(const RmsNormParams& p, fulmen_context& context, void* stream) {
  check_rows("rms_norm", p.num_tokens * p.num_heads);
  const NormConfig config = choose_rms_norm(p);
  const int64_t grid = norm_grid(config, p.num_tokens * p.num_heads, p.residual != nullptr, target(context));
  launch("rms_norm", config, rms_norm_unit, grid, p, context, stream);
}

void layer_norm(const LayerNormParams& p, fulmen_context& context, void* stream) {
  check_rows("layer_norm", p.num_tokens * p.num_heads);
  const NormConfig config = choose_layer_norm(p);
  const int64_t grid = norm_grid(config, p.num_tokens * p.num_heads, false, target(context));
  launch("layer_norm", config, layer_norm_unit, grid, p, context, stream);
}

void act_and_mul(const ActAndMulParams& p, fulmen_context& context, void* stream) {
  const ActAndMulConfig config = choose_act_and_mul(p);
  launch("act_and_mul", config, act_and_mul_unit, act_and_mul_grid(config, p, target(context)), p, context, stream);
}

void rope(const RopeParams& p, fulmen_context& context, void* stream) {
  const RopeConfig config = choose_rope(p);
  launch("rope", config, rope_unit, rope_grid(p), p, context, stream);
}

void rope_append(const RopeAppendParams& p, fulmen_context& context, void* stream) {
  const RopeConfig config = choose_rope_append(p);
  launch("rope_append", config, rope_append_unit, rope_grid(p.rope), p, context, stream);
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

namespace {

// The ops on rows of a vocabulary: a cluster of blocks per row.
template <class Params>
void launch_rows(const char* op, bool holds, Unit (*unit)(const SamplingConfig&), const void* x, int64_t stride, int64_t words, const Params& p,
                 fulmen_context& context, void* stream) {
  check_rows(op, p.num_rows, 0x7fffffff / 8);  // a block's number is 31 bits
  if (words > kMaxCudaVocab) {
    fail(FULMEN_UNSUPPORTED, "{}: input: expected at most {} words on cuda, found {}", op, kMaxCudaVocab, words);
  }
  const SamplingConfig config = choose_sampling(p.dtype, x, stride, holds, target(context));
  launch(op, config, unit, sampling_grid(config, p.num_rows), p, context, stream);
}

}  // namespace

void softmax(const SoftmaxParams& p, fulmen_context& context, void* stream) {
  launch_rows("softmax", true, softmax_unit, p.logits, p.logits_stride, p.vocab, p, context, stream);
}

void argmax(const ArgmaxParams& p, fulmen_context& context, void* stream) {
  launch_rows("argmax", false, argmax_unit, p.x, p.x_stride, p.n, p, context, stream);
}

void sample(const SampleParams& p, fulmen_context& context, void* stream) {
  launch_rows("sample", true, sample_unit, p.input, p.input_stride, p.vocab, p, context, stream);
}

void filter(const FilterOpParams& p, fulmen_context& context, void* stream) {
  launch_rows("filter", true, filter_unit, p.input, p.input_stride, p.vocab, p, context, stream);
}

void top_k(const TopKParams& p, fulmen_context& context, void* stream) {
  if (p.k > kMaxCudaTopK) fail(FULMEN_UNSUPPORTED, "top_k: values: expected k of at most {} on cuda, found {}", kMaxCudaTopK, p.k);
  launch_rows("top_k", true, top_k_unit, p.x, p.x_stride, p.n, p, context, stream);
}

}  // namespace fulmen::cuda
