#include "cuda/merge_states.hpp"

#include "cuda/state.hpp"
#include "plan/merge_states.hpp"

namespace fulmen::cuda {

void merge_states(const MergeStatesParams& params, fulmen_context& context, void* handle) {
  if (params.num_rows * params.num_heads > 0x7fffffff) {
    fail(FULMEN_UNSUPPORTED,
         "merge_states: o: expected at most 2^31 - 1 rows and heads on cuda, found {} x {}", params.num_rows,
         params.num_heads);
  }
  State& state = state_of(context);
  const StreamScope scope(state.device().index, handle);
  const MergeStatesConfig config = choose_merge_states(params);
  const LoadedKernel& kernel =
      state.kernel("merge_states" + json(config), scope.stream(), [&] { return merge_states_unit(config); });
  state.launch(kernel, scope.stream(), merge_states_grid(config, params, state.target()), &params);
}

}  // namespace fulmen::cuda
