#include "jit/shipped.hpp"

#include "plan/attend_sm80.hpp"

namespace fulmen {

// An op has one line in each of the two lists; src/jit/ops/OP.cpp says which units it needs.
std::vector<Unit> append_kv_units(const Target&);
std::vector<Unit> plan_units(const Target&);
std::vector<Unit> rms_norm_units(const Target&);
std::vector<Unit> layer_norm_units(const Target&);
std::vector<Unit> act_and_mul_units(const Target&);
std::vector<Unit> rope_units(const Target&);
std::vector<Unit> rope_append_units(const Target&);
std::vector<Unit> linear_units(const Target&);
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
      {"rope_append", rope_append_units},
      {"linear", linear_units},
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

}  // namespace fulmen
