// Cases by name, for those who run one of them (fulmen-emulate) or all alike (ceilings, seeds). A test file adds its tables.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace fulmen {

struct KernelCase {
  std::string name;                         // "attend_sm80 decode: ragged"
  std::function<void(uint64_t seed)> run;  // what is wrong is a failed assertion of GoogleTest
};

inline std::vector<KernelCase>& kernel_cases() {
  static std::vector<KernelCase> all;
  return all;
}

// const bool kAdded = add_cases("append_kv", kCases, [](const Case& c, uint64_t seed) { ... });
template <class Table, class Run> bool add_cases(const char* kernel, const Table& table, Run run) {
  for (const auto& c : table) kernel_cases().push_back({std::string(kernel) + ": " + c.name, [&c, run](uint64_t seed) { run(c, seed); }});
  return true;
}

}  // namespace fulmen
