// Prints the README's table of what works where: every answer is fulmen_supports's own.
#include <fulmen/fulmen.hpp>

#include <cstdio>
#include <string>
#include <vector>

namespace {

constexpr const char* kTargets[] = {"cpu", "sm_80", "sm_90a"};
constexpr struct { fulmen_dtype dtype; const char* name; } kDtypes[] = {
    {FULMEN_F32, "f32"}, {FULMEN_F16, "f16"}, {FULMEN_BF16, "bf16"}};

struct Row {
  std::string name;
  fulmen_op op;
  uint32_t features = 0;
  int head_dim_qk = 128, head_dim_vo = 128, batch_invariant = 0, num_levels = 1;
};

std::vector<Row> rows() {
  std::vector<Row> all = {
      {"attention: paged or ragged, causal, window, GQA", FULMEN_OP_ATTENTION},
      {"attention: head_dim 64", FULMEN_OP_ATTENTION, 0, 64, 64},
      {"attention: head_dim 256", FULMEN_OP_ATTENTION, 0, 256, 256},
      {"attention: head_dim 192 for K, 128 for V", FULMEN_OP_ATTENTION, 0, 192, 128},
      {"attention: soft cap", FULMEN_OP_ATTENTION, FULMEN_ATTENTION_SOFT_CAP},
      {"attention: ALiBi", FULMEN_OP_ATTENTION, FULMEN_ATTENTION_ALIBI},
      {"attention: sinks", FULMEN_OP_ATTENTION, FULMEN_ATTENTION_SINKS},
      {"attention: RoPE on the fly", FULMEN_OP_ATTENTION, FULMEN_ATTENTION_ROPE},
      {"attention: custom mask", FULMEN_OP_ATTENTION, FULMEN_ATTENTION_CUSTOM_MASK},
      {"attention: without softmax", FULMEN_OP_ATTENTION, FULMEN_ATTENTION_NO_SOFTMAX},
      {"attention: shared prefixes (levels)", FULMEN_OP_ATTENTION, 0, 128, 128, 0, 2},
      {"attention: batch invariant", FULMEN_OP_ATTENTION, 0, 128, 128, 1},
  };
  for (int op = FULMEN_OP_ATTENTION + 1; op < FULMEN_OP_COUNT; ++op) {
    all.push_back({fulmen_op_name(static_cast<fulmen_op>(op)), static_cast<fulmen_op>(op)});
  }
  return all;
}

bool supported(const char* target, const Row& row, fulmen_dtype dtype) {
  auto spec = fulmen::make<fulmen_op_spec>();
  spec.op = row.op;
  spec.dtype = dtype;
  auto attention = fulmen::make<fulmen_attention_spec>();
  attention.q_dtype = attention.kv_dtype = attention.o_dtype = dtype;
  attention.head_dim_qk = row.head_dim_qk;
  attention.head_dim_vo = row.head_dim_vo;
  attention.features = row.features;
  attention.batch_invariant = row.batch_invariant;
  auto limits = fulmen::make<fulmen_attention_limits>();
  limits.max_requests = 8;
  limits.max_rows = limits.max_kv_len = 4096;
  limits.num_levels = row.num_levels;
  limits.num_groups = 1;
  limits.groups[0] = {sizeof(fulmen_attention_group), 32, 8, 1, -1};
  if (row.op == FULMEN_OP_ATTENTION) {
    spec.attention = &attention;
    spec.limits = &limits;
  }
  return fulmen::supports(target, spec);
}

std::string cell(const char* target, const Row& row) {
  std::string names;
  size_t count = 0;
  for (const auto& dtype : kDtypes) {
    if (!supported(target, row, dtype.dtype)) continue;
    names += std::string(names.empty() ? "" : ", ") + dtype.name;
    ++count;
  }
  if (count == 0) return "not yet";
  return (count == std::size(kDtypes) ? "works: " : "partly: ") + names;
}

}  // namespace

int main() {
  std::printf("| op | CPU | GPU, `sm_80` | GPU, `sm_90a` |\n| --- | --- | --- | --- |\n");
  for (const Row& row : rows()) {
    std::printf("| %s", row.name.c_str());
    for (const char* target : kTargets) std::printf(" | %s", cell(target, row).c_str());
    std::printf(" |\n");
  }
}
