#include "cuda/attention.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/state.hpp"
#include "plan/attend_sm80.hpp"

namespace fulmen::cuda {
namespace {

constexpr size_t kSlotAlignment = 256;  // of an array in a slot of the ring

// What any plan's lengths on the host take, in a slot of the ring and behind the plan.
size_t staging_bytes(const ScheduleShape& shape) {
  constexpr size_t kArrays = 3, kIndexBytes = 8;  // qo_indptr; kv_page_indptr and last_page_len, or kv_len
  const auto entries = static_cast<size_t>(shape.max_requests) + 1;
  return static_cast<size_t>(shape.num_levels) * kArrays * round_up<size_t>(entries * kIndexBytes, kSlotAlignment);
}

}  // namespace

Attention::Attention(fulmen_context& context, const fulmen_attention_spec& spec, const fulmen_attention_limits& limits,
                     ScheduleShape& shape)
    : context_(context) {
  State& state = state_of(context);
  const int sms = limits.num_sms > 0 ? std::min(limits.num_sms, state.device().num_sms) : state.device().num_sms;
  AttendChoice choice = choose_attend_sm80(attend_problem(spec, shape, sms), state.target());
  apply_choice(choice, shape);
  config_ = choice.config;
  user_variant_ = user_variant_text(spec);
  const Unit unit = attend_sm80_unit(config_, user_variant_);
  attend_ = &state.prepare(unit);
  general_name_ = "general " + unit.config_json + user_variant_;
  plan_ = &state.prepare(plan_unit(choose_plan(shape.max_requests)));
  {
    const StreamScope scope(state.device().index, nullptr);
    state.ring().reserve(scope.context(), staging_bytes(shape));
  }
  layout_ = attend_scratch(shape, choice.config, spec.head_dim_vo);
  counters_offset_ = round_up<int64_t>(layout_.end * 4, 256);
  counters_bytes_ = round_up<int64_t>(attend_num_counters(shape) * 4, 256);
}

void Attention::plan(const ScheduleShape& shape, ScheduleLengths lengths, const std::vector<HostArray>& host,
                     void* plan_mem, void* handle) const {
  State& state = state_of(context_);
  const StreamScope scope(state.device().index, handle);
  if (host.empty()) {
    const PlanParams params{shape, lengths, plan_mem};
    return state.launch(*plan_, scope.stream(), 1, &params);
  }
  // A graph would read the slot again at every replay, long after it has been given to others.
  if (is_capturing(scope.stream())) {
    fail(FULMEN_INVALID_ARGUMENT,
         "attention_plan: {}: expected a tensor on the CUDA device while the stream is capturing, found one on the host",
         host[0].name);
  }
  size_t bytes = 0;
  for (const HostArray& array : host) bytes += round_up<size_t>(array.bytes, kSlotAlignment);
  std::unique_ptr<PinnedRing::Slot> slot = state.ring().acquire(scope.context(), bytes);
  char* staging = static_cast<char*>(plan_mem) + fulmen::plan_bytes(shape);
  size_t at = 0;
  for (const HostArray& array : host) {
    const void*& data = lengths.levels[array.level].*array.member;
    if (array.bytes > 0) std::memcpy(slot->data + at, data, array.bytes);
    data = staging + at;
    at += round_up<size_t>(array.bytes, kSlotAlignment);
  }
  const Result result =
      driver().CopyHtoDAsync(reinterpret_cast<DevicePtr>(staging), slot->data, bytes, scope.stream());
  if (result != 0) {
    state.ring().release_unread(std::move(slot));
    check(result, "cuMemcpyHtoDAsync");
  }
  state.ring().release(std::move(slot), scope.stream());
  const PlanParams params{shape, lengths, plan_mem};
  state.launch(*plan_, scope.stream(), 1, &params);
}

int64_t Attention::plan_bytes(const ScheduleShape& shape) {
  return fulmen::plan_bytes(shape) + static_cast<int64_t>(staging_bytes(shape));
}

namespace {

// Does everything lie at whole 16 bytes, near enough for 32-bit places that count them?
bool fits_vectors(const AttentionParams& p) {
  constexpr int64_t kVector = 8;  // elements of 16 bytes
  const auto whole = [](const void* data, std::initializer_list<int64_t> strides) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
           std::ranges::all_of(strides, [](int64_t stride) { return stride % kVector == 0; });
  };
  const auto near = [&p](const KvStorage& kv) {
    const int64_t heads = p.shape.groups[p.group].num_kv_heads;
    const int64_t last = (kv.num_pages - 1) * kv.stride_page + (p.page_size - 1) * kv.stride_token + heads * kv.stride_head;
    return last / kVector < int64_t{0xffffffff} && kv.stride_page >= 0 && kv.stride_token >= 0 && kv.stride_head >= 0;
  };
  return whole(p.q, {p.q_stride_row, p.q_stride_head}) && whole(p.o, {p.o_stride_row, p.o_stride_head}) &&
         whole(p.k.data, {p.k.stride_page, p.k.stride_token, p.k.stride_head}) &&
         whole(p.v.data, {p.v.stride_page, p.v.stride_token, p.v.stride_head}) && near(p.k) && near(p.v);
}

// Places of the general kernel are 32-bit numbers of keys.
void check_pool(const AttentionParams& p) {
  const int64_t keys = std::max(p.k.num_pages, p.v.num_pages) * p.page_size;
  if (keys < int64_t{0xffffffff}) return;
  fail(FULMEN_UNSUPPORTED, "attention_run: k: expected a pool of less than 2^32 - 1 keys on cuda, found {}", keys);
}

}  // namespace

void Attention::run(const AttentionParams& call, void* handle) const {
  State& state = state_of(context_);
  const StreamScope scope(state.device().index, handle);
  const LoadedKernel* kernel = attend_;
  const bool scale_fits = call.sm_scale > 0.0f || config_.makes_logits();  // the plain softmax takes maxima before it scales
  if (!fits_vectors(call) || !scale_fits) {
    check_pool(call);
    kernel = &state.kernel(general_name_, scope.stream(), [this] {
      AttendSm80Config config = config_;
      config.general = true;
      return attend_sm80_unit(config, user_variant_);
    });
  }
  AttendSm80Params params;
  static_cast<AttentionParams&>(params) = call;
  params.layout = layout_;
  params.page_log2 = exact_log2(call.page_size);
  params.counters = reinterpret_cast<AttendCounters*>(static_cast<char*>(call.scratch) + counters_offset_);
  state.launch(*kernel, scope.stream(), call.shape.groups[call.group].num_workers, &params);
}

void scratch_init(fulmen_context& context, void* scratch, uint64_t bytes, void* handle) {
  const State& state = state_of(context);
  const StreamScope scope(state.device().index, handle);
  FULMEN_CUDA(MemsetD8Async(reinterpret_cast<DevicePtr>(scratch), 0, bytes, scope.stream()));
}

}  // namespace fulmen::cuda
