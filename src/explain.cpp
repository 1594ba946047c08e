// What would run for a spec, what it should cost against the machine's limits, and why other targets can't.
#include <nlohmann/json.hpp>

#include "core/args.hpp"
#include "core/check.hpp"
#include "core/cpus.hpp"
#include "cpu/attention.hpp"
#include "jit/shipped.hpp"
#include "plan/attend_sm80.hpp"
#include "plan/attention.hpp"
#include "plan/targets.hpp"
#include "supports.hpp"
#include "text_result.hpp"

using namespace fulmen;
using Json = nlohmann::ordered_json;

namespace {

// Bytes of keys and values that a step at the limits reads once, and what they cost at the target's published rate.
Json step_cost(const fulmen_attention_spec& spec, const fulmen_attention_limits& limits, const Target* target) {
  Json groups = Json::array();
  check_attention_limits(limits);
  for (int g = 0; g < limits.num_groups; ++g) {
    const auto& group = limits.groups[g];
    const int64_t keys = group.window_left >= 0 ? std::min<int64_t>(limits.max_kv_len, group.window_left + 1) : limits.max_kv_len;
    const double bytes = static_cast<double>(limits.max_requests) * static_cast<double>(keys) * group.num_kv_heads *
                         (spec.head_dim_qk + spec.head_dim_vo) * dtype_size(spec.kv_dtype);
    Json row = {{"kv_bytes_at_the_limits", bytes}};
    if (target != nullptr && target->read_gbps > 0) row["read_floor_us"] = bytes / target->read_gbps / 1e3;
    groups.push_back(row);
  }
  return groups;
}

Json shape_json(const ScheduleShape& shape) {
  Json groups = Json::array();
  for (int g = 0; g < shape.num_groups; ++g) {
    const ScheduleGroup& group = shape.groups[g];
    groups.push_back({{"tile_rows", group.tile_q},
                      {"workers", group.num_workers},
                      {"rows_are", "token * " + std::to_string(group.group_size) + " + head in group"}});
  }
  return {{"unit_keys", 1 << shape.unit_log2}, {"canonical", shape.canonical != 0}, {"groups", groups}};
}

Json explain_cpu(const fulmen_op_spec& spec) {
  Json json = {{"backend", "cpu"}, {"threads", usable_cpus()}};
  if (spec.op != FULMEN_OP_ATTENTION || spec.limits == nullptr) return json;
  const auto attention = read_args("explain", "attention", spec.attention);
  const auto limits = read_args("explain", "limits", spec.limits);
  const ScheduleShape shape = attention_shape_cpu(attention, limits, usable_cpus());
  json["schedule"] = shape_json(shape);
  json["plan_bytes"] = plan_bytes(shape);
  json["scratch_bytes"] = cpu::attention_scratch_bytes(shape, attention.head_dim_qk, attention.head_dim_vo, usable_cpus());
  json["cost"] = step_cost(attention, limits, nullptr);
  return json;
}

Json explain_cuda(const char* name, const fulmen_op_spec& spec) {
  Json json = {{"backend", "cuda"}};
  if (std::string(name) == "cuda") return json;  // the device is asked when a context is made, not here
  const Target& target = target_by_name(name);
  json["arch"] = target.arch;
  json["sms"] = target.num_sms;
  json["shared_per_block_bytes"] = target.smem_per_block;
  Json kernels = Json::array();
  for (const ShippedKernel& shipped : shipped_kernels(target)) {
    if (shipped.op != fulmen_op_name(static_cast<fulmen_op>(spec.op))) continue;
    Json kernel = {{"kernel", shipped.unit.kernel}, {"threads", shipped.unit.num_threads}, {"shared_bytes", shipped.unit.smem_bytes}};
    if (!shipped.unit.config_json.empty()) kernel["config"] = Json::parse(shipped.unit.config_json);
    kernels.push_back(kernel);
  }
  json["kernels_of_this_op"] = kernels;
  if (spec.op == FULMEN_OP_ATTENTION && spec.limits != nullptr) {
    const auto attention = read_args("explain", "attention", spec.attention);
    const auto limits = read_args("explain", "limits", spec.limits);
    ScheduleShape shape = attention_shape(attention, limits);
    const int sms = limits.num_sms > 0 ? std::min(limits.num_sms, target.num_sms) : target.num_sms;
    const AttendChoice choice = choose_attend_sm80(attend_problem(attention, shape, sms), target);
    apply_choice(choice, shape);
    json["chosen"] = {{"config", Json::parse(attend_sm80_unit(choice.config, user_variant_text(attention)).config_json)}, {"reason", choice.reason}};
    json["schedule"] = shape_json(shape);
    json["cost"] = step_cost(attention, limits, &target);
  }
  return json;
}

}  // namespace

extern "C" fulmen_status fulmen_explain(const char* target, const fulmen_op_spec* given, char** out) {
  return guard([&] {
    require(out != nullptr, "explain: json: expected a place for the text, found NULL");
    const Backend backend = backend_of(target);
    const auto spec = read_args("explain", "spec", given);
    Json json = {{"op", fulmen_op_name(static_cast<fulmen_op>(spec.op))}, {"target", target}};
    const std::string lacking = missing(target, spec);
    json["supported"] = lacking.empty();
    if (lacking.empty()) {
      json.update(backend == Backend::cpu ? explain_cpu(spec) : explain_cuda(target, spec));
    } else {
      json["missing"] = lacking;
    }
    // Why not elsewhere: the other back end's answer to the same question.
    const Backend other = backend == Backend::cpu ? Backend::cuda : Backend::cpu;
    const std::string elsewhere = missing(other, spec);
    json["alternatives"] = {{other == Backend::cpu ? "cpu" : "cuda", elsewhere.empty() ? "supported too" : "refused: " + elsewhere}};
    *out = to_c_text(json.dump(2));
  });
}
