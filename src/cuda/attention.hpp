// Attention on a CUDA device: kernels made at creation, plan and run as one launch each.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "attention_args.hpp"
#include "core/context.hpp"
#include "kernels/attention/attend_sm80.config.hpp"
#include "kernels/attention/attend_sm80.params.hpp"

namespace fulmen::cuda {

class LoadedKernel;

// Immutable after creation.
class Attention {
 public:
  // Chooses tiles and workers (into `shape`), compiles and loads.
  Attention(fulmen_context& context, const fulmen_attention_spec& spec, const fulmen_attention_limits& limits,
            ScheduleShape& shape);

  // The schedule's plan and, behind it, room for lengths that come from the host.
  static int64_t plan_bytes(const ScheduleShape& shape);
  int64_t scratch_bytes() const { return counters_offset_ + counters_bytes_; }
  // The arrays named in `host` go up through the context's ring to the end of the plan memory, all others are on the device.
  void plan(const ScheduleShape& shape, ScheduleLengths lengths, const std::vector<HostArray>& host, void* plan_mem,
            void* stream) const;
  void run(const AttentionParams& params, void* stream) const;

 private:
  fulmen_context& context_;
  AttendSm80Config config_;
  const LoadedKernel* attend_;
  std::string user_variant_;
  std::string general_name_;  // of the kernel for tensors that attend_ can't take, made at their first use
  const LoadedKernel* plan_;
  AttendScratch layout_;
  int64_t counters_offset_, counters_bytes_;
};

// Zeroes the counters behind the slots: all of a scratch memory, since its layout is the handle's affair.
void scratch_init(fulmen_context& context, void* scratch, uint64_t bytes, void* stream);

}  // namespace fulmen::cuda
