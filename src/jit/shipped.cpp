#include "jit/shipped.hpp"

#include <algorithm>

#include "core/args.hpp"
#include "plan/attend_sm80.hpp"
#include "supports.hpp"

namespace fulmen {

// An op has one line in each of the two lists; src/jit/ops/OP.cpp says which units it needs.
std::vector<Unit> append_kv_units(const Target&);
std::vector<Unit> plan_units(const Target&);
std::vector<Unit> rms_norm_units(const Target&);
std::vector<Unit> layer_norm_units(const Target&);
std::vector<Unit> act_and_mul_units(const Target&);
std::vector<Unit> rope_units(const Target&);
std::vector<Unit> softmax_units(const Target&);
std::vector<Unit> argmax_units(const Target&);
std::vector<Unit> sample_units(const Target&);
std::vector<Unit> filter_units(const Target&);
std::vector<Unit> top_k_units(const Target&);
std::vector<Unit> merge_states_units(const Target&);

std::vector<ShippedKernel> shipped_kernels(const Target& target) {
  struct Op {
    const char* name;
    std::vector<Unit> (*units)(const Target&);
  };
  const std::vector<Op> ops = {
      {"append_kv", append_kv_units},
      {"attention", [](const Target& t) { return attend_sm80_units(t); }},
      {"attention", plan_units},
      {"rms_norm", rms_norm_units},
      {"layer_norm", layer_norm_units},
      {"act_and_mul", act_and_mul_units},
      {"rope", rope_units},
      {"softmax", softmax_units},
      {"argmax", argmax_units},
      {"sample", sample_units},
      {"filter", filter_units},
      {"top_k", top_k_units},
      {"merge_states", merge_states_units},
  };
  std::vector<ShippedKernel> shipped;
  for (const Op& op : ops)
    for (Unit& unit : op.units(target)) shipped.push_back({op.name, std::move(unit)});
  return shipped;
}

std::vector<Unit> units_to_prepare(const Target& target, const fulmen_op_spec* specs, int32_t num_specs) {
  bool wanted[FULMEN_OP_COUNT] = {};
  std::vector<Unit> units;
  const auto add = [&units](Unit unit) {
    if (std::ranges::find(units, unit) == units.end()) units.push_back(std::move(unit));
  };
  for (int32_t i = 0; i < num_specs; ++i) {
    const auto spec = read_args("prepare", "specs", nth_spec(specs, i));
    wanted[spec.op] = true;
    if (spec.op != FULMEN_OP_ATTENTION) continue;
    const auto attention = read_args("prepare", "attention", spec.attention);
    const int levels = spec.limits == nullptr ? 1 : std::max(1, read_args("prepare", "limits", spec.limits).num_levels);
    std::ranges::for_each(attend_sm80_units(target, attention, levels), add);
  }
  for (ShippedKernel& kernel : shipped_kernels(target)) {
    bool take = num_specs == 0;
    for (int op = 0; op < FULMEN_OP_COUNT; ++op) {
      take = take || (wanted[op] && kernel.op == fulmen_op_name(static_cast<fulmen_op>(op)));
    }
    if (take) add(std::move(kernel.unit));
  }
  return units;
}

}  // namespace fulmen
