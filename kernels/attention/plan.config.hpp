// What changes the machine code of the plan kernel.
#pragma once

#include <kernels/attention/schedule.hpp>

namespace fulmen {

struct PlanConfig {
  int threads;
  int each;  // segments of a thread at a time, one behind the other

  bool operator==(const PlanConfig&) const = default;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("threads", threads);
    field("each", each);
  }
  constexpr int num_threads() const { return threads; }
  constexpr int span() const { return threads * each; }
};

struct PlanParams {
  ScheduleShape shape;
  ScheduleLengths lengths;
  void* plan;
};

}  // namespace fulmen
