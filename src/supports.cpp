#include "supports.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "core/args.hpp"
#include "core/check.hpp"
#include "plan/attend_sm80.hpp"
#include "plan/targets.hpp"

namespace fulmen {
namespace {

constexpr uint32_t bit(int dtype) { return 1u << dtype; }
constexpr uint32_t kHalves = bit(FULMEN_F16) | bit(FULMEN_BF16);
constexpr uint32_t kFloats = bit(FULMEN_F32) | bit(FULMEN_F16) | bit(FULMEN_BF16);

struct OpRow {
  fulmen_op op;
  const char* name;
  uint32_t cpu, cuda;  // dtypes of the op's main input
};

// Attention's row is its q_dtype; missing_attention knows the rest.
constexpr OpRow kOps[] = {
    {FULMEN_OP_ATTENTION, "attention", kFloats, kHalves},
    {FULMEN_OP_APPEND_KV, "append_kv", kFloats, kFloats},
    {FULMEN_OP_MERGE_STATES, "merge_states", kFloats, kFloats},
    {FULMEN_OP_ROPE, "rope", kFloats, kFloats},
    {FULMEN_OP_RMS_NORM, "rms_norm", kFloats, kFloats},
    {FULMEN_OP_LAYER_NORM, "layer_norm", kFloats, kFloats},
    {FULMEN_OP_ACT_AND_MUL, "act_and_mul", kFloats, kFloats},
    {FULMEN_OP_SOFTMAX, "softmax", kFloats, kFloats},
    {FULMEN_OP_ARGMAX, "argmax", kFloats, kFloats},
    {FULMEN_OP_SAMPLE, "sample", kFloats, kFloats},
    {FULMEN_OP_FILTER, "filter", kFloats, kFloats},
    {FULMEN_OP_TOP_K, "top_k", kFloats, kFloats},
    {FULMEN_OP_ROPE_APPEND, "rope_append", kFloats, kFloats},
    {FULMEN_OP_LINEAR, "linear", kHalves, kHalves},
};
static_assert(std::size(kOps) == FULMEN_OP_COUNT);

std::string dtypes_text(uint32_t dtypes) {
  std::string text;
  for (int d = 0; d < 32; ++d) {
    if (dtypes & bit(d)) text += (text.empty() ? "" : " | ") + std::string(dtype_name(d));
  }
  return text.empty() ? "no dtype" : text;
}

const char* backend_name(Backend backend) { return backend == Backend::cpu ? "cpu" : "cuda"; }

std::string missing_dtype(Backend backend, const OpRow& row, const char* what, int32_t dtype) {
  const uint32_t allowed = backend == Backend::cpu ? row.cpu : row.cuda;
  if (dtype >= 0 && dtype < 32 && (allowed & bit(dtype))) return "";
  return fmt::format("{}: expected {} on {}, found {}", what, dtypes_text(allowed), backend_name(backend),
                     dtype_name(dtype));
}

bool is_identifier(const char* name) {
  if (name == nullptr || *name == '\0' || (*name >= '0' && *name <= '9')) return false;
  for (; *name != '\0'; ++name) {
    const bool letter = (*name | 32) >= 'a' && (*name | 32) <= 'z';
    if (!letter && *name != '_' && !(*name >= '0' && *name <= '9')) return false;
  }
  return true;
}

}  // namespace

Backend backend_of(const char* target) {
  require(target != nullptr, "target: expected \"cpu\", \"cuda\" or \"sm_XX\", found NULL");
  if (std::strcmp(target, "cpu") == 0) return Backend::cpu;
  if (std::strcmp(target, "cuda") == 0) return Backend::cuda;
  if (std::strncmp(target, "sm_", 3) == 0) {
    char* end = nullptr;
    const long arch = std::strtol(target + 3, &end, 10);
    const bool named = target[3] >= '1' && target[3] <= '9' && (*end == '\0' || ((*end == 'a' || *end == 'f') && end[1] == '\0'));
    require(named && arch < 1000, "target: expected \"cpu\", \"cuda\" or \"sm_XX\", found \"{}\"", target);
    require(arch >= 80, "target: expected sm_80 (Ampere) or newer, found {}", target);
    return Backend::cuda;
  }
  fail(FULMEN_INVALID_ARGUMENT, "target: expected \"cpu\", \"cuda\" or \"sm_XX\", found \"{}\"", target);
}

uint32_t supported_dtypes(Backend backend, fulmen_op op) {
  return backend == Backend::cpu ? kOps[op].cpu : kOps[op].cuda;
}

std::string missing_attention(Backend backend, const fulmen_attention_spec& spec,
                              const fulmen_attention_limits* limits) {
  std::string text = missing_dtype(backend, kOps[FULMEN_OP_ATTENTION], "q_dtype", spec.q_dtype);
  if (!text.empty()) return text;
  if (spec.kv_dtype != spec.q_dtype) {
    return fmt::format("kv_dtype: expected q_dtype {}, found {}", dtype_name(spec.q_dtype), dtype_name(spec.kv_dtype));
  }
  if (spec.o_dtype != spec.q_dtype && spec.o_dtype != FULMEN_F32) {
    return fmt::format("o_dtype: expected q_dtype {} or f32, found {}", dtype_name(spec.q_dtype), dtype_name(spec.o_dtype));
  }
  const auto bad_dim = [](int32_t d) { return d < 8 || d > 256 || d % 8 != 0; };
  if (bad_dim(spec.head_dim_qk)) return fmt::format("head_dim_qk: expected a multiple of 8 from 8 to 256, found {}", spec.head_dim_qk);
  if (bad_dim(spec.head_dim_vo)) return fmt::format("head_dim_vo: expected a multiple of 8 from 8 to 256, found {}", spec.head_dim_vo);
  constexpr uint32_t kKnown = (FULMEN_ATTENTION_NO_SOFTMAX << 1) - 1;
  if (spec.features & ~kKnown) return fmt::format("features: expected bits of {:#x}, found {:#x}", kKnown, spec.features);
  if (backend == Backend::cpu && spec.variant_source != nullptr) {
    return "variant_source: a user's variant is compiled for a GPU; the CPU has the built-in features only";
  }
  if (spec.variant_source != nullptr && !is_identifier(spec.variant_name)) {
    return fmt::format("variant_name: expected the name of the struct in variant_source, found {}",
                       spec.variant_name == nullptr ? "NULL" : spec.variant_name);
  }
  if (limits != nullptr) {
    for (int g = 0; g < limits->num_groups && g < FULMEN_MAX_GROUPS; ++g) {
      const auto& group = limits->groups[g];
      if (group.num_kv_heads < 1 || group.num_qo_heads < 1 || group.num_qo_heads % group.num_kv_heads != 0) {
        return fmt::format("groups[{}]: expected num_qo_heads to be a multiple of num_kv_heads, found {} and {}", g,
                           group.num_qo_heads, group.num_kv_heads);
      }
    }
  }
  return "";
}

std::string missing(Backend backend, const fulmen_op_spec& spec) {
  require(spec.op >= 0 && spec.op < FULMEN_OP_COUNT, "op: expected 0 to {}, found {}", FULMEN_OP_COUNT - 1, spec.op);
  if (spec.op != FULMEN_OP_ATTENTION) return missing_dtype(backend, kOps[spec.op], "dtype", spec.dtype);
  require(spec.attention != nullptr, "attention: expected an attention spec, found NULL");
  const auto attention = read_args("supports", "attention", spec.attention);
  if (spec.limits == nullptr) return missing_attention(backend, attention, nullptr);
  const auto limits = read_args("supports", "limits", spec.limits);
  return missing_attention(backend, attention, &limits);
}

std::string missing(const char* name, const fulmen_op_spec& spec) {
  std::string text = missing(backend_of(name), spec);
  if (!text.empty() || spec.op != FULMEN_OP_ATTENTION || spec.limits == nullptr) return text;
  for (const Target& target : named_targets()) {
    if (target.name != name) continue;
    const auto attention = read_args("supports", "attention", spec.attention);
    return missing_tile(target, attention, read_args("supports", "limits", spec.limits).num_levels);
  }
  return "";
}

void require_support(Backend backend, const fulmen_op_spec& spec) {
  const std::string text = missing(backend, spec);
  if (!text.empty()) fail(FULMEN_UNSUPPORTED, "{}: {}", kOps[spec.op].name, text);
}

}  // namespace fulmen

using namespace fulmen;

extern "C" const char* fulmen_op_name(fulmen_op op) {
  return op >= 0 && op < FULMEN_OP_COUNT ? kOps[op].name : "unknown op";
}

extern "C" fulmen_status fulmen_supports(const char* target, const fulmen_op_spec* given) {
  return guard([&] {
    const auto spec = read_args("supports", "spec", given);
    const std::string text = missing(target, spec);
    if (!text.empty()) fail(FULMEN_UNSUPPORTED, "{}: {}", kOps[spec.op].name, text);
  });
}

extern "C" void fulmen_string_free(char* text) { std::free(text); }
