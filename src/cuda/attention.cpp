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

namespace {

// Copies are 16 bytes wide and their places 32 bits: what the tensors must be like.
void check_vectors(const AttentionParams& p) {
  constexpr auto op = "attention_run";
  constexpr int64_t kVector = 8;  // elements of 16 bytes
  const auto aligned = [&](const char* name, const void* data, std::initializer_list<int64_t> strides) {
    bool ok = reinterpret_cast<uintptr_t>(data) % 16 == 0;
    for (const int64_t stride : strides) ok = ok && stride % kVector == 0;
    if (!ok) {
      fail(FULMEN_UNSUPPORTED, "{}: {}: expected an address and strides of whole 16 bytes on cuda, found others", op, name);
    }
  };
  aligned("q", p.q, {p.q_stride_row, p.q_stride_head});
  aligned("o", p.o, {p.o_stride_row, p.o_stride_head});
  aligned("k", p.k.data, {p.k.stride_page, p.k.stride_token, p.k.stride_head});
  aligned("v", p.v.data, {p.v.stride_page, p.v.stride_token, p.v.stride_head});
  const auto extent = [&](const char* name, const KvStorage& kv) {
    const int64_t heads = p.shape.groups[p.group].num_kv_heads;
    const int64_t last = (kv.num_pages - 1) * kv.stride_page + (p.page_size - 1) * kv.stride_token + heads * kv.stride_head;
    if (last / kVector >= int64_t{0xffffffff} || kv.stride_page < 0 || kv.stride_token < 0 || kv.stride_head < 0) {
      fail(FULMEN_UNSUPPORTED, "{}: {}: expected a pool of less than 64 GiB with positive strides on cuda, found {} elements",
           op, name, last);
    }
  };
  extent("k", p.k);
  extent("v", p.v);
  if (!(p.sm_scale > 0.0f)) fail(FULMEN_UNSUPPORTED, "{}: sm_scale: expected more than 0 on cuda, found {}", op, p.sm_scale);
}

}  // namespace

void Attention::run(const AttentionParams& call, void* handle) const {
  check_vectors(call);
  const State& state = state_of(context_);
  const StreamScope scope(state.device().index, handle);
  AttendSm80Params params;
  static_cast<AttentionParams&>(params) = call;
  params.slots = slots_;
  params.page_log2 = exact_log2(call.page_size);
  params.counters = reinterpret_cast<AttendCounters*>(static_cast<char*>(call.scratch) + counters_offset_);
  state.launch(*attend_, scope.stream(), call.shape.groups[call.group].num_workers, &params);
}

void scratch_init(fulmen_context& context, void* scratch, uint64_t bytes, void* handle) {
  const State& state = state_of(context);
  const StreamScope scope(state.device().index, handle);
  FULMEN_CUDA(MemsetD8Async(reinterpret_cast<DevicePtr>(scratch), 0, bytes, scope.stream()));
}

}  // namespace fulmen::cuda
