// What changes the machine code of the plan kernel.
#pragma once

#include <kernels/attention/schedule.hpp>

namespace fulmen {

struct PlanConfig {
  int threads;

  bool operator==(const PlanConfig&) const = default;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("threads", threads);
  }
  constexpr int num_threads() const { return threads; }
};

struct PlanParams {
  ScheduleShape shape;
  ScheduleLengths lengths;
  void* plan;
};

}  // namespace fulmen
