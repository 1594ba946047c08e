#include <algorithm>

#include "cuda/ops.hpp"
#include "cuda/state.hpp"
#include "plan/append_kv.hpp"

namespace fulmen::cuda {

void append_kv(const AppendKvParams& params, fulmen_context& context, void* handle) {
  State& state = state_of(context);
  const StreamScope scope(state.device().index, handle);
  const AppendKvConfig config = choose_append_kv(params);
  const auto name = fmt::format("append_kv/{}/{}", config.element_bytes, config.vector_bytes);
  const LoadedKernel& kernel = state.kernel(name, scope.stream(), [&] { return append_kv_unit(config); });
  state.launch(kernel, scope.stream(), append_kv_grid(config, params.num_tokens, state.target()), &params);
}

}  // namespace fulmen::cuda
