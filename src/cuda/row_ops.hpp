// The row-wise ops on a CUDA device: ordered on the stream, nothing waited for, nothing allocated.
#pragma once

#include "core/context.hpp"
#include "kernels/activation/act_and_mul.params.hpp"
#include "kernels/linear/linear.params.hpp"
#include "kernels/norm/layer_norm.params.hpp"
#include "kernels/norm/rms_norm.params.hpp"
#include "kernels/rope/rope.params.hpp"
#include "kernels/rope/rope_append.params.hpp"
#include "kernels/sampling/argmax.params.hpp"
#include "kernels/sampling/sampling.params.hpp"
#include "kernels/topk/top_k.params.hpp"

namespace fulmen::cuda {

void rms_norm(const RmsNormParams& params, fulmen_context& context, void* stream);
void layer_norm(const LayerNormParams& params, fulmen_context& context, void* stream);
void act_and_mul(const ActAndMulParams& params, fulmen_context& context, void* stream);
void rope(const RopeParams& params, fulmen_context& context, void* stream);
void rope_append(const RopeAppendParams& params, fulmen_context& context, void* stream);
void linear(const LinearParams& params, fulmen_context& context, void* stream);
void softmax(const SoftmaxParams& params, fulmen_context& context, void* stream);
void argmax(const ArgmaxParams& params, fulmen_context& context, void* stream);
void sample(const SampleParams& params, fulmen_context& context, void* stream);
void filter(const FilterOpParams& params, fulmen_context& context, void* stream);
void top_k(const TopKParams& params, fulmen_context& context, void* stream);

}  // namespace fulmen::cuda
