// Which attend_sm80 kernel runs for a spec and limits: tiles, workers, costs.
#pragma once

#include <optional>

#include "fulmen/fulmen.h"
#include "jit/unit.hpp"
#include "kernels/attention/attend_sm80.config.hpp"
#include "kernels/attention/attend_sm80.params.hpp"
#include "kernels/attention/plan.config.hpp"
#include "plan/targets.hpp"

namespace fulmen {

struct AttendChoice {
  AttendSm80Config config;
  int num_workers;      // blocks of the persistent grid
  const char* reason;
};

// What decides. packed_rows: most packed rows of a request, over all groups.
struct AttendProblem {
  DType dtype, o_dtype;
  int head_dim_qk, head_dim_vo;
  int64_t packed_rows;
  int num_levels;
  bool canonical;
  int num_sms;  // that may be used
  AttendVariants variants = {};
};

// None where no tile fits the target; choose_attend_sm80 throws unsupported then.
std::optional<AttendChoice> find_attend_sm80(const AttendProblem& problem, const Target& target);
AttendChoice choose_attend_sm80(const AttendProblem& problem, const Target& target);
// Empty: a tile fits the target for any number of rows. Else what does not fit, as a sentence.
std::string missing_tile(const Target& target, const fulmen_attention_spec& spec, int num_levels);
AttendProblem attend_problem(const fulmen_attention_spec& spec, const ScheduleShape& shape, int num_sms);
// Tile, costs, unit and workers of every group.
void apply_choice(const AttendChoice& choice, ScheduleShape& shape);

// The variants that a spec names.
AttendVariants attend_variants(const fulmen_attention_spec& spec);
// The file that brings a user's variant into the unit; empty where the spec has none.
std::string user_variant_text(const fulmen_attention_spec& spec);
Unit attend_sm80_unit(const AttendSm80Config& config, std::string user_source = {});
std::vector<Unit> attend_sm80_units(const Target& target);
// All tile classes of a spec that fit the target: what its handles may need.
std::vector<Unit> attend_sm80_units(const Target& target, const fulmen_attention_spec& spec, int num_levels);
PlanConfig choose_plan(int64_t max_requests);
Unit plan_unit(const PlanConfig& config);

}  // namespace fulmen
