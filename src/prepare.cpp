// fulmen_prepare, fulmen_prepare_target, fulmen_prepare_list: kernels made before they are needed.
#include "prepare.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>

#include "core/args.hpp"
#include "core/check.hpp"
#include "core/context.hpp"
#include "jit/kernels.hpp"
#include "plan/attend_sm80.hpp"
#include "plan/attention.hpp"
#include "supports.hpp"
#include "text_result.hpp"

namespace fulmen {
namespace {

using Json = nlohmann::ordered_json;

// A kernel whose config names no dtype serves all of them.
bool serves_dtype(const Unit& unit, int32_t dtype) {
  const Json config = Json::parse(unit.config_json);
  return !config.contains("dtype") || config["dtype"] == dtype_name(dtype);
}

std::vector<Unit> attention_units(const Target& target, const fulmen_attention_spec& spec, const fulmen_attention_limits& limits) {
  check_attention_limits(limits);
  const ScheduleShape shape = attention_shape(spec, limits);
  const int sms = limits.num_sms > 0 ? std::min(limits.num_sms, target.num_sms) : target.num_sms;
  return {attend_sm80_unit(choose_attend_sm80(attend_problem(spec, shape, sms), target).config, user_variant_text(spec)),
          plan_unit(choose_plan(shape.max_requests))};
}

}  // namespace

std::vector<ShippedKernel> kernels_of_specs(const char* op, const Target& target, const fulmen_op_spec* specs,
                                            int32_t num_specs) {
  require(num_specs >= 0 && (num_specs == 0 || specs != nullptr), "{}: specs: expected {} specs, found NULL", op, num_specs);
  std::vector<ShippedKernel> shipped = shipped_kernels(target);
  if (num_specs == 0) return shipped;
  std::vector<ShippedKernel> wanted;
  const auto want = [&](const ShippedKernel& kernel) {
    const bool known = std::any_of(wanted.begin(), wanted.end(), [&](const auto& other) { return other.unit == kernel.unit; });
    if (!known) wanted.push_back(kernel);
  };
  for (int32_t i = 0; i < num_specs; ++i) {
    const auto spec = read_args(op, "specs", nth_spec(specs, i));
    require_support(Backend::cuda, spec);
    const std::string name = fulmen_op_name(static_cast<fulmen_op>(spec.op));
    if (spec.op == FULMEN_OP_ATTENTION && spec.limits != nullptr) {
      const auto attention = read_args(op, "attention", spec.attention);
      for (Unit& unit : attention_units(target, attention, read_args(op, "limits", spec.limits))) want({name, std::move(unit)});
      continue;
    }
    if (spec.op == FULMEN_OP_ATTENTION) {  // all tile classes, with the plans of any number of requests
      for (Unit& unit : attend_sm80_units(target, read_args(op, "attention", spec.attention), 1)) want({name, std::move(unit)});
      for (const ShippedKernel& kernel : shipped) {
        if (kernel.unit.kernel == "plan_attention") want(kernel);
      }
      continue;
    }
    for (const ShippedKernel& kernel : shipped) {
      if (kernel.op == name && serves_dtype(kernel.unit, spec.dtype)) want(kernel);
    }
  }
  return wanted;
}

namespace {

KernelOptions kernel_options(const char* op, const fulmen_context_options* given) {
  KernelOptions options;
  if (given == nullptr) return options;
  const auto o = read_args(op, "options", given);
  if (o.cache_dir) options.cache_dir = o.cache_dir;
  if (o.nvrtc_path) options.nvrtc = o.nvrtc_path;
  if (o.kernels_dir) options.kernels_dir = o.kernels_dir;
  return options;
}

const Target& named_target(const char* op, const char* name) {
  require(name != nullptr, "{}: target: expected a name such as \"sm_90a\", found NULL", op);
  return target_by_name(name);
}

}  // namespace
}  // namespace fulmen

using namespace fulmen;

extern "C" fulmen_status fulmen_prepare(fulmen_context* context, const fulmen_op_spec* specs, int32_t num_specs,
                                        fulmen_progress_fn progress, void* user) {
  return guard([&] {
    fulmen_context& c = deref("prepare", context);
    if (!c.is_cpu()) return c.device->prepare(specs, num_specs, progress, user);
    require(num_specs >= 0 && (num_specs == 0 || specs != nullptr), "prepare: specs: expected {} specs, found NULL",
            num_specs);
    for (int32_t i = 0; i < num_specs; ++i) require_support(Backend::cpu, read_args("prepare", "specs", nth_spec(specs, i)));
  });
}

extern "C" fulmen_status fulmen_prepare_target(const char* target_name, const fulmen_context_options* options,
                                               const fulmen_op_spec* specs, int32_t num_specs,
                                               fulmen_progress_fn progress, void* user) {
  return guard([&] {
    constexpr auto op = "prepare_target";
    const Target& target = named_target(op, target_name);
    KernelLibrary library(kernel_options(op, options));
    std::vector<Unit> units;
    for (ShippedKernel& kernel : kernels_of_specs(op, target, specs, num_specs)) units.push_back(std::move(kernel.unit));
    library.prepare(units, target, 0, [&](int done, int total, const CompiledKernel& kernel) {
      if (progress) progress(user, done, total, kernel.kernel.c_str(), kernel.seconds);
    });
  });
}

extern "C" fulmen_status fulmen_prepare_list(const char* target_name, const fulmen_context_options* options,
                                             const fulmen_op_spec* specs, int32_t num_specs, char** out) {
  return guard([&] {
    constexpr auto op = "prepare_list";
    require(out != nullptr, "{}: json: expected a place for the text, found NULL", op);
    const Target& target = named_target(op, target_name);
    const KernelLibrary library(kernel_options(op, options));
    Json rows = Json::array();
    for (const ShippedKernel& kernel : kernels_of_specs(op, target, specs, num_specs)) {
      const KernelLibrary::Entry entry = library.look_up(kernel.unit, target);
      rows.push_back({{"op", kernel.op},
                      {"kernel", kernel.unit.kernel},
                      {"config", Json::parse(kernel.unit.config_json)},
                      {"sources", entry.sources},
                      {"cached", entry.cached}});
    }
    *out = to_c_text(rows.dump());
  });
}
