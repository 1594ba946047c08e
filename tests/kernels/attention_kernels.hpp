// The kernels of attention as functions that the emulator can launch, each compiled once.
#pragma once

#include "emulator/emulator.hpp"
#include <kernels/attention/attend_sm80.cuh>
#include <kernels/attention/plan.cuh>

namespace fulmen::attention_test {

inline constexpr PlanConfig kPlan{.threads = 128, .each = 1};
__attribute__((noinline)) inline void plan_kernel(const PlanParams& p) { plan_attention<kPlan>(p); }

template <AttendSm80Config kC> __attribute__((noinline)) void attend_kernel(const AttendSm80Params& p) { attend_sm80<kC>(p); }
struct Kernel {
  const char* name;
  AttendSm80Config config;
  void (*run)(const AttendSm80Params&);
};
template <AttendSm80Config kC> constexpr Kernel kernel(const char* name) { return {name, kC, attend_kernel<kC>}; }

}  // namespace fulmen::attention_test
