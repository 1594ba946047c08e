// From the C structs of an attention call to the plain ones of kernels/attention, with every check that the host can do.
#pragma once

#include <kernels/attention/attention.params.hpp>

#include <string>
#include <vector>

#include "core/context.hpp"
#include "fulmen/fulmen.h"

namespace fulmen {

// An array of lengths in host memory, given to a context whose kernels run elsewhere.
struct HostArray {
  std::string name;
  int32_t level;
  const void* LevelLengths::*member;
  size_t bytes;
};

// Lengths that lie on the host are added to `host` and their values checked here, before anything is launched.
ScheduleLengths read_lengths(const char* op, const fulmen_context& context, const ScheduleShape& shape,
                             const fulmen_attention_lengths& lengths, std::vector<HostArray>& host);

// All but plan and scratch.
AttentionParams read_tensors(const char* op, const fulmen_context& context, const fulmen_attention_spec& spec,
                             const ScheduleShape& shape, const fulmen_attention_tensors& tensors);

// One level's table. num_requests: entries that tables must have, -1: not known.
KvTable read_kv_table(const char* op, const std::string& name, const fulmen_context& context,
                      const fulmen_kv_table& table, bool ragged);

// CPU only, where the plan can be read: are there rows and table entries for what was planned?
void require_plan_fits(const char* op, const AttentionParams& params, const fulmen_attention_tensors& tensors);

}  // namespace fulmen
