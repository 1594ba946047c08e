#include "engine/kernel_specs.hpp"

#include "engine/input_error.hpp"

#include <fmt/format.h>
#include <fulmen/fulmen.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <fstream>

namespace fulmen::engine {
namespace {

constexpr int32_t kLeastRows = 256;  // of a step, beside a row for each request

/// Gathering rows is attention over one key: the row is cut into heads of this many elements.
int64_t gather_head_dim(int64_t hidden) {
  for (const int64_t dim : {128, 64, 32, 16, 8})
    if (hidden % dim == 0) return dim;
  throw InputError(fmt::format("hidden size {}: expected a multiple of 8", hidden));
}

struct Sizes {
  int64_t requests, rows, row_len, kv_len, heads, kv_heads, dim;
  bool causal;
};

KernelSpecs::OneAttention attention(const Sizes& s, fulmen_dtype dtype, bool invariant) {
  KernelSpecs::OneAttention a{make<fulmen_attention_spec>(), make<fulmen_attention_limits>()};
  a.spec.q_dtype = a.spec.kv_dtype = a.spec.o_dtype = dtype;
  a.spec.head_dim_qk = a.spec.head_dim_vo = static_cast<int32_t>(s.dim);
  a.spec.batch_invariant = invariant;
  a.limits.max_requests = s.requests;
  a.limits.max_rows = s.rows;
  a.limits.max_qo_len = s.row_len;
  a.limits.max_kv_len = s.kv_len;
  a.limits.num_levels = a.limits.num_groups = 1;
  a.limits.groups[0] = make<fulmen_attention_group>();
  a.limits.groups[0].num_qo_heads = static_cast<int32_t>(s.heads);
  a.limits.groups[0].num_kv_heads = static_cast<int32_t>(s.kv_heads);
  a.limits.groups[0].causal = s.causal;
  a.limits.groups[0].window_left = -1;
  return a;
}

}  // namespace

KernelSpecs::KernelSpecs(const ModelConfig& c, const ExecutorLimits& limits, bool invariant)
    : gather_dim(gather_head_dim(c.hidden)), dtype_(limits.kv_dtype) {
  const int64_t requests = limits.max_requests, rows = limits.max_rows, context = limits.max_context;
  mixed = attention({requests, rows, rows, context, c.num_heads, c.num_kv_heads, c.head_dim, true}, dtype_, invariant);
  decode = attention({requests, requests, 1, context, c.num_heads, c.num_kv_heads, c.head_dim, true}, dtype_, invariant);
  const int64_t heads = c.hidden / gather_dim;
  gather = attention({rows, rows, 1, 1, heads, heads, gather_dim, false}, dtype_, false);
}

std::vector<fulmen_op_spec> KernelSpecs::all() const {
  std::vector<fulmen_op_spec> specs;
  const auto add = [&](fulmen_op op, fulmen_dtype dtype, const OneAttention* attention) {
    specs.push_back(make<fulmen_op_spec>());
    specs.back().op = op;
    specs.back().dtype = dtype;
    if (attention == nullptr) return;
    specs.back().attention = &attention->spec;
    specs.back().limits = &attention->limits;
  };
  for (const OneAttention* one : {&mixed, &decode, &gather}) add(FULMEN_OP_ATTENTION, dtype_, one);
  for (const fulmen_op op : {FULMEN_OP_ROPE_APPEND, FULMEN_OP_RMS_NORM, FULMEN_OP_ACT_AND_MUL, FULMEN_OP_LINEAR})
    add(op, dtype_, nullptr);
  add(FULMEN_OP_SAMPLE, FULMEN_F32, nullptr);
  return specs;
}

ExecutorLimits executor_limits(int32_t batch, int32_t chunk, int32_t page_size, int64_t context, fulmen_dtype kv_dtype) {
  ExecutorLimits limits;
  limits.page_size = page_size;
  limits.max_requests = batch;
  limits.max_rows = std::max(chunk, kLeastRows) + batch;
  limits.max_context = context;
  limits.kv_dtype = kv_dtype;
  return limits;
}

ModelConfig read_config_json(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw InputError(fmt::format("{}: can't be read", path));
  const nlohmann::json json = nlohmann::json::parse(file, nullptr, false);
  if (!json.is_object()) throw InputError(fmt::format("{}: expected a JSON object", path));
  const auto integer = [&](const char* name, int64_t fallback) {
    const auto found = json.find(name);
    if (found == json.end() || found->is_null()) {
      if (fallback > 0) return fallback;
      throw InputError(fmt::format("{}: {} is missing", path, name));
    }
    if (!found->is_number_integer() || found->get<int64_t>() < 1 || found->get<int64_t>() > (int64_t{1} << 32))
      throw InputError(fmt::format("{}: {}: expected an integer above 0, found {}", path, name, found->dump()));
    return found->get<int64_t>();
  };
  ModelConfig c;
  c.num_layers = integer("num_hidden_layers", 0);
  c.hidden = integer("hidden_size", 0);
  c.intermediate = integer("intermediate_size", 4 * c.hidden);
  c.num_heads = integer("num_attention_heads", 0);
  c.num_kv_heads = integer("num_key_value_heads", c.num_heads);
  c.head_dim = integer("head_dim", c.hidden / c.num_heads);
  c.vocab = integer("vocab_size", 0);
  c.context = integer("max_position_embeddings", 0);
  return c;
}

}  // namespace fulmen::engine
