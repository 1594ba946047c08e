#include "jit/shipped.hpp"

namespace fulmen {

// An op has one line in each of the two lists; src/jit/ops/OP.cpp says which units it needs.
std::vector<Unit> append_kv_units(const Target&);
std::vector<Unit> attend_sm80_units(const Target&);
std::vector<Unit> plan_units(const Target&);

std::vector<ShippedKernel> shipped_kernels(const Target& target) {
  struct Op {
    const char* name;
    std::vector<Unit> (*units)(const Target&);
  };
  const std::vector<Op> ops = {
      {"append_kv", append_kv_units},
      {"attention", attend_sm80_units},
      {"attention", plan_units},
  };
  std::vector<ShippedKernel> shipped;
  for (const Op& op : ops)
    for (Unit& unit : op.units(target)) shipped.push_back({op.name, std::move(unit)});
  return shipped;
}

}  // namespace fulmen
