// `fulmen info` and `fulmen explain`: what the library says about this machine and about a call.
#include "exit_codes.hpp"
#include "options.hpp"
#include "terminal.hpp"

#include <fmt/format.h>
#include <fulmen/fulmen.hpp>
#include <nlohmann/json.hpp>

#pragma weak fulmen_explain  // a library without it is no reason not to start

namespace fulmen::command {
namespace {

void print_json_text(char* text) {
  const std::string json(text);
  fulmen_string_free(text);
  write_result(nlohmann::ordered_json::parse(json).dump(2) + "\n");
  flush_results();
}

int32_t dtype_of_name(const std::string& name) {
  return name == "f32" ? FULMEN_F32 : name == "bf16" ? FULMEN_BF16 : FULMEN_F16;
}

}  // namespace

int run_info() {
  char* json = nullptr;
  check(fulmen_info(&json));
  print_json_text(json);
  return kSuccess;
}

int run_explain(const ExplainOptions& options) {
  auto attention = make<fulmen_attention_spec>();
  attention.q_dtype = attention.kv_dtype = attention.o_dtype = dtype_of_name(options.dtype);
  attention.head_dim_qk = attention.head_dim_vo = options.head_dim;
  attention.batch_invariant = options.invariant;
  auto limits = make<fulmen_attention_limits>();
  limits.max_requests = options.requests;
  limits.max_rows = options.rows;
  limits.max_kv_len = options.kv_len;
  limits.num_groups = 1;
  limits.groups[0] = make<fulmen_attention_group>();
  limits.groups[0].num_qo_heads = options.num_qo_heads;
  limits.groups[0].num_kv_heads = options.num_kv_heads;
  limits.groups[0].causal = 1;
  limits.groups[0].window_left = -1;

  auto spec = make<fulmen_op_spec>();
  spec.op = FULMEN_OP_COUNT;
  for (int32_t op = 0; op < FULMEN_OP_COUNT; ++op)
    if (options.op == fulmen_op_name(static_cast<fulmen_op>(op))) spec.op = op;
  if (spec.op == FULMEN_OP_COUNT) {
    std::string names;
    for (int32_t op = 0; op < FULMEN_OP_COUNT; ++op)
      names += std::string(op ? ", " : "") + fulmen_op_name(static_cast<fulmen_op>(op));
    error_line(fmt::format("--op: expected one of {}; found {}", names, options.op));
    return kUsage;
  }
  spec.dtype = dtype_of_name(options.dtype);
  if (spec.op == FULMEN_OP_ATTENTION) {
    spec.attention = &attention;
    spec.limits = &limits;
  }
  if (!fulmen_explain) throw StatusError(FULMEN_UNSUPPORTED, "explain: this build of the library doesn't have it");
  char* json = nullptr;
  check(fulmen_explain(options.target.c_str(), &spec, &json));
  print_json_text(json);
  return kSuccess;
}

}  // namespace fulmen::command
