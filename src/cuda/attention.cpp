#include "cuda/attention.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "cuda/state.hpp"
#include "plan/attend_sm80.hpp"

namespace fulmen::cuda {

Attention::Attention(fulmen_context& context, const fulmen_attention_spec& spec, const fulmen_attention_limits& limits,
                     ScheduleShape& shape)
    : context_(context) {
  State& state = state_of(context);
  const int sms = limits.num_sms > 0 ? std::min(limits.num_sms, state.device().num_sms) : state.device().num_sms;
  AttendChoice choice = choose_attend_sm80(attend_problem(spec, shape, sms), state.target());
  apply_choice(choice, shape);
  attend_ = &state.prepare(attend_sm80_unit(choice.config));
  plan_ = &state.prepare(plan_unit(choose_plan(shape.max_requests)));
  slots_ = slot_layout(shape);
  const int64_t slot_bytes = num_slots(slots_) * slot_floats(choice.config.tile_q(), spec.head_dim_vo) * 4;
  counters_offset_ = round_up<int64_t>(slot_bytes, 256);
  counters_bytes_ = round_up<int64_t>(static_cast<int64_t>(sizeof(AttendCounters)) + 4 * choice.num_workers, 256);
}

void Attention::plan(const ScheduleShape& shape, const ScheduleLengths& lengths, void* plan_mem, void* handle) const {
  const State& state = state_of(context_);
  const StreamScope scope(state.device().index, handle);
  const PlanParams params{shape, lengths, plan_mem};
  state.launch(*plan_, scope.stream(), 1, &params);
}

void Attention::run(const AttentionParams& call, void* handle) const {
  const State& state = state_of(context_);
  const StreamScope scope(state.device().index, handle);
  AttendSm80Params params;
  static_cast<AttentionParams&>(params) = call;
  params.slots = slots_;
  params.counters = reinterpret_cast<AttendCounters*>(static_cast<char*>(call.scratch) + counters_offset_);
  state.launch(*attend_, scope.stream(), call.shape.groups[call.group].num_workers, &params);
}

void scratch_init(fulmen_context& context, void* scratch, uint64_t bytes, void* handle) {
  const State& state = state_of(context);
  const StreamScope scope(state.device().index, handle);
  FULMEN_CUDA(MemsetD8Async(reinterpret_cast<DevicePtr>(scratch), 0, bytes, scope.stream()));
}

}  // namespace fulmen::cuda
