// The attention handle: create, sizes, plan, run.
#include <kernels/attention/attention.params.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>

#include "attention_args.hpp"
#include "cpu/attention.hpp"
#include "cuda/attention.hpp"
#include "entry.hpp"
#include "plan/attention.hpp"
#include "supports.hpp"

using namespace fulmen;

struct fulmen_attention {
  fulmen_context* context = nullptr;
  fulmen_attention_spec spec{};
  ScheduleShape shape{};
  fulmen_attention_sizes sizes{};
  int32_t threads = 1;                    // CPU
  std::unique_ptr<cuda::Attention> cuda;  // null on the CPU
};

namespace {

const fulmen_attention& deref(const char* op, const fulmen_attention* attention) {
  require(attention != nullptr, "{}: attention: expected a handle, found NULL", op);
  return *attention;
}

void require_aligned(const char* op, const char* name, const void* memory, uintptr_t alignment) {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  require(address % alignment == 0, "{}: {}: expected {}-byte alignment, found an address ending in {:#x}", op, name,
          alignment, address & 0xff);
}

// Tells plans of other limits, and memory that no plan was written to. Host only: a device's plan can't be read here.
int32_t plan_mark(const ScheduleShape& shape) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&shape);
  uint32_t hash = 2166136261u;  // FNV-1a
  for (size_t i = 0; i < sizeof shape; ++i) hash = (hash ^ bytes[i]) * 16777619u;
  return static_cast<int32_t>(hash | 1u);
}

}  // namespace

extern "C" fulmen_status fulmen_attention_create(fulmen_context* handle, const fulmen_attention_spec* given_spec,
                                                 const fulmen_attention_limits* given_limits, fulmen_attention** out) {
  return guard([&] {
    constexpr auto op = "attention_create";
    require(out != nullptr, "{}: attention: expected a place for the handle, found NULL", op);
    *out = nullptr;
    fulmen_context& context = deref(op, handle);
    const auto spec = read_args(op, "spec", given_spec);
    const auto limits = read_args(op, "limits", given_limits);
    check_attention_limits(limits);
    const std::string lacking = missing_attention(context.is_cpu() ? Backend::cpu : Backend::cuda, spec, &limits);
    if (!lacking.empty()) fail(FULMEN_UNSUPPORTED, "{}: {}", op, lacking);

    auto attention = std::make_unique<fulmen_attention>();
    attention->context = handle;
    attention->spec = spec;
    attention->sizes.struct_size = sizeof(fulmen_attention_sizes);
    if (!context.is_cpu()) {
      attention->shape = attention_shape(spec, limits);
      attention->cuda = std::make_unique<cuda::Attention>(context, spec, limits, attention->shape);
      attention->sizes.plan_bytes = static_cast<uint64_t>(cuda::Attention::plan_bytes(attention->shape));
      attention->sizes.scratch_bytes = static_cast<uint64_t>(attention->cuda->scratch_bytes());
      *out = attention.release();
      return;
    }
    attention->threads = context.pool.num_threads();
    if (limits.num_sms > 0) attention->threads = std::min(attention->threads, limits.num_sms);
    attention->shape = attention_shape_cpu(spec, limits, attention->threads);
    attention->sizes.plan_bytes = static_cast<uint64_t>(plan_bytes(attention->shape));
    attention->sizes.scratch_bytes = static_cast<uint64_t>(cpu::attention_scratch_bytes(
        attention->shape, spec.head_dim_qk, spec.head_dim_vo, attention->threads));
    *out = attention.release();
  });
}

extern "C" void fulmen_attention_destroy(fulmen_attention* attention) { delete attention; }

extern "C" fulmen_status fulmen_attention_sizes_of(const fulmen_attention* handle, fulmen_attention_sizes* sizes) {
  return guard([&] {
    constexpr auto op = "attention_sizes_of";
    const fulmen_attention& attention = deref(op, handle);
    require(sizes != nullptr, "{}: sizes: expected a struct, found NULL", op);
    const size_t size = sizes->struct_size;
    require(size >= sizeof(size_t), "{}: sizes: expected struct_size to be set, found {}", op, size);
    fulmen_attention_sizes result = attention.sizes;
    result.struct_size = size;
    std::memcpy(sizes, &result, std::min(size, sizeof result));
  });
}

extern "C" fulmen_status fulmen_scratch_init(fulmen_context* handle, void* scratch, uint64_t bytes, fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "scratch_init";
    fulmen_context& context = deref(op, handle);
    require(scratch != nullptr || bytes == 0, "{}: scratch: expected memory, found NULL", op);
    if (!context.is_cpu()) return cuda::scratch_init(context, scratch, bytes, stream);
    // The CPU reads nothing of its scratch that the same run hasn't written.
  });
}

extern "C" fulmen_status fulmen_attention_plan(const fulmen_attention* handle, const fulmen_attention_lengths* given,
                                               void* plan_mem, fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "attention_plan";
    const fulmen_attention& attention = deref(op, handle);
    const auto lengths = read_args(op, "lengths", given);
    require(plan_mem != nullptr, "{}: plan_mem: expected {} bytes, found NULL", op, attention.sizes.plan_bytes);
    require_aligned(op, "plan_mem", plan_mem, 8);
    std::vector<HostArray> host;
    const ScheduleLengths checked = read_lengths(op, *attention.context, attention.shape, lengths, host);
    if (attention.cuda) return attention.cuda->plan(attention.shape, checked, host, plan_mem, stream);
    plan_serial(attention.shape, checked, plan_mem);
    static_cast<PlanHeader*>(plan_mem)->reserved = plan_mark(attention.shape);
  });
}

extern "C" fulmen_status fulmen_attention_run(const fulmen_attention* handle, const fulmen_attention_tensors* given,
                                              const void* plan_mem, void* scratch, fulmen_stream stream) {
  return guard([&] {
    constexpr auto op = "attention_run";
    const fulmen_attention& attention = deref(op, handle);
    const auto tensors = read_args(op, "tensors", given);
    require(plan_mem != nullptr, "{}: plan_mem: expected {} bytes, found NULL", op, attention.sizes.plan_bytes);
    require(scratch != nullptr, "{}: scratch: expected {} bytes, found NULL", op, attention.sizes.scratch_bytes);
    require_aligned(op, "plan_mem", plan_mem, 8);
    require_aligned(op, "scratch", scratch, 64);
    AttentionParams params = read_tensors(op, *attention.context, attention.spec, attention.shape, tensors);
    params.plan = const_cast<void*>(plan_mem);
    params.scratch = scratch;
    if (attention.cuda) return attention.cuda->run(params, stream);
    require(static_cast<const PlanHeader*>(plan_mem)->reserved == plan_mark(attention.shape),
            "{}: plan_mem: expected a plan made by this handle or one of the same limits, found other bytes", op);
    require_plan_fits(op, params, tensors);
    cpu::attention(params, attention.context->pool, attention.threads);
  });
}
