// The C ABI against callers that are wrong: every refusal is one line that names the op, the argument, what was
// expected and what was found, and nothing is written. What only a device would hold may be anything.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "fuzz/abi_target.hpp"

namespace fulmen::fuzz {
namespace {

using testing::AnyOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr uint32_t kVariants = 192;  // of Calls::make

void expect_refused(Call& call, const std::string& name, const char* what) {
  const fulmen_status status = call.checked_run();
  EXPECT_EQ(status, FULMEN_INVALID_ARGUMENT) << call.op << ": " << name << ": " << what;
  if (status == FULMEN_OK) return;
  const std::string text = fulmen_last_error();
  EXPECT_THAT(text, StartsWith(call.op + ": ")) << what;
  EXPECT_THAT(text, HasSubstr(name.substr(0, name.find('.')))) << what;
  EXPECT_THAT(text, HasSubstr("expected")) << what;
}

// Each tensor of each op in turn, made wrong in one way.
TEST(Abi, RefusesWrongTensors) {
  Calls calls;
  int checked = 0;
  for (uint32_t which = 0; which < Calls::kOps; ++which) {
    if (which == Calls::kCreate) continue;  // takes no tensors
    for (const uint32_t variant : {0u, 1u, 6u, 12u, 24u, 54u, 61u, 96u, 102u}) {
      const size_t count = calls.make(which, variant)->places.size();
      for (size_t i = 0; i < count; ++i) {
        const auto wrong = [&](const char* what, auto&& change) {
          const auto call = calls.make(which, variant);
          ASSERT_EQ(call->checked_run(), FULMEN_OK) << call->op << ", variant " << variant << ": " << fulmen_last_error();
          const auto again = calls.make(which, variant);
          if (!change(*again->places[i].tensor, again->places[i])) return;
          expect_refused(*again, again->places[i].name, what);
          ++checked;
        };
        wrong("ndim 0", [](auto& t, auto&) { return t.ndim = 0, true; });
        wrong("ndim -1", [](auto& t, auto&) { return t.ndim = -1, true; });
        wrong("ndim 6", [](auto& t, auto&) { return t.ndim = 6, true; });
        wrong("ndim largest", [](auto& t, auto&) { return t.ndim = INT32_MAX, true; });
        wrong("no dtype", [](auto& t, auto&) { return t.dtype = 77, true; });
        wrong("wrong dtype", [](auto& t, auto&) { return t.dtype = FULMEN_F8_E5M2, true; });
        wrong("CUDA", [](auto& t, auto&) { return t.device = FULMEN_CUDA, true; });
        wrong("no device", [](auto& t, auto&) { return t.device = -3, true; });
        wrong("negative size", [](auto& t, auto&) { return t.shape[0] = -1, true; });
        wrong("overflowing sizes", [](auto& t, auto&) {
          for (int d = 0; d < t.ndim; ++d) t.shape[d] = int64_t{1} << 62;
          return true;
        });
        wrong("sizes whose product wraps to 0, without data", [](auto& t, auto& place) {
          if (!place.required || t.ndim < 2) return false;
          t.data = nullptr;
          t.shape[0] = int64_t{1} << 62, t.shape[1] = 4;
          return true;
        });
        wrong("stride beyond the address space", [](auto& t, auto&) {
          if (t.shape[0] < 2) return false;
          return t.stride[0] = INT64_MAX / 2, true;
        });
        wrong("negative stride beyond the address space", [](auto& t, auto&) {
          if (t.shape[0] < 2) return false;
          return t.stride[0] = INT64_MIN, true;
        });
        wrong("absent", [](auto& t, auto& place) { return t.data = nullptr, place.required; });
        wrong("misaligned", [](auto& t, auto&) {
          if (size_of_dtype(t.dtype) < 2) return false;
          return t.data = static_cast<char*>(t.data) + 1, true;
        });
        wrong("output whose rows share memory", [](auto& t, auto& place) {
          if (!place.output || t.shape[0] < 2 || place.name == "q" || place.name == "k") return false;  // in place: q_out
          return t.stride[0] = 0, true;
        });
      }
    }
  }
  EXPECT_GT(checked, 1500);
}

TEST(Abi, RefusesOutputsOverInputs) {
  Calls calls;
  const auto over = [&](uint32_t which, const char* output, const char* input, ptrdiff_t bytes) {
    const auto call = calls.make(which, 0);
    Place *out = nullptr, *in = nullptr;
    for (Place& p : call->places) {
      if (p.name == output) out = &p;
      if (p.name == input) in = &p;
    }
    ASSERT_TRUE(out && in) << call->op;
    out->tensor->data = static_cast<char*>(in->tensor->data) + bytes;
    expect_refused(*call, output, "overlap");
  };
  over(0, "out", "x", 0);
  over(0, "out", "x", 4);
  over(1, "out", "x", 4);
  over(1, "out", "residual", 0);
  over(2, "out", "weight", 0);
  over(4, "probs", "logits", 8);
  over(7, "output", "input", -4);
  over(8, "indices", "values", 0);
  over(9, "k_cache", "k", 0);
  over(9, "v_cache", "k_cache", 64);
  over(12, "o", "q", 0);
  over(12, "lse", "o", 0);
  over(13, "o", "part_o", 0);
  over(14, "o", "o_b", 2);
}

TEST(Abi, WorksInPlaceWhereTheHeaderSaysSo) {
  Calls calls;
  const auto in_place = [&](uint32_t which, const char* output, const char* input) {
    const auto call = calls.make(which, 0);
    for (Place& p : call->places) {
      if (p.name != output) continue;
      for (Place& q : call->places) {
        if (q.name == input) p.tensor->data = q.tensor->data, q.output = true;
      }
    }
    EXPECT_EQ(call->checked_run(), FULMEN_OK) << fulmen_last_error();
  };
  in_place(1, "out", "x");
  in_place(4, "probs", "logits");
  in_place(7, "output", "input");
  in_place(14, "o", "o_a");
  in_place(14, "o", "o_b");
}

TEST(Abi, RefusesWrongStructs) {
  Calls calls;
  for (uint32_t which = 0; which < Calls::kOps; ++which) {
    const auto refused = [&](const char* what, auto&& change) {
      const auto call = calls.make(which, 0);
      change(*call);
      EXPECT_EQ(call->checked_run(), FULMEN_INVALID_ARGUMENT) << call->op << ": " << what;
      EXPECT_THAT(fulmen_last_error(), HasSubstr("struct")) << what;
    };
    const auto set = [](Call& c, size_t size) { std::memcpy(c.args, &size, sizeof size); };
    refused("size 0", [&](Call& c) { set(c, 0); });
    refused("size 7", [&](Call& c) { set(c, 7); });
    refused("absurd size", [&](Call& c) { set(c, SIZE_MAX); });
    refused("a newer member is set", [&](Call& c) {
      set(c, c.args_size + 16);
      c.args[c.args_size + 9] = 1;
    });
    const auto newer = calls.make(which, 0);
    set(*newer, newer->args_size + 64);
    EXPECT_EQ(newer->checked_run(), FULMEN_OK) << newer->op << ": a newer caller: " << fulmen_last_error();
    const auto only_size = calls.make(which, 0);
    set(*only_size, sizeof(size_t));
    EXPECT_NE(only_size->checked_run(), FULMEN_OK) << only_size->op;
  }
}

TEST(Abi, RefusesNull) {
  fulmen_context* context = nullptr;
  ASSERT_EQ(fulmen_context_create(nullptr, &context), FULMEN_OK) << fulmen_last_error();
  const auto refused = [](fulmen_status status, const char* op) {
    EXPECT_EQ(status, FULMEN_INVALID_ARGUMENT) << op;
    EXPECT_THAT(fulmen_last_error(), StartsWith(op));
    EXPECT_THAT(fulmen_last_error(), HasSubstr("NULL"));
  };
  const auto op = [&](auto function, auto args, const char* name) {
    decltype(args) given{};
    given.struct_size = sizeof given;
    refused(function(nullptr, &given, nullptr), name);
    refused(function(context, nullptr, nullptr), name);
    given.struct_size = sizeof(size_t);
    EXPECT_NE(function(context, &given, nullptr), FULMEN_OK) << name;  // all defaults: required tensors are absent
    EXPECT_THAT(fulmen_last_error(), StartsWith(name));
  };
  op(fulmen_append_kv, fulmen_append_kv_args{}, "append_kv");
  op(fulmen_rope, fulmen_rope_args{}, "rope");
  op(fulmen_rms_norm, fulmen_rms_norm_args{}, "rms_norm");
  op(fulmen_layer_norm, fulmen_layer_norm_args{}, "layer_norm");
  op(fulmen_act_and_mul, fulmen_act_and_mul_args{}, "act_and_mul");
  op(fulmen_softmax, fulmen_softmax_args{}, "softmax");
  op(fulmen_argmax, fulmen_argmax_args{}, "argmax");
  op(fulmen_sample, fulmen_sample_args{}, "sample");
  op(fulmen_filter, fulmen_filter_args{}, "filter");
  op(fulmen_top_k, fulmen_top_k_args{}, "top_k");
  op(fulmen_merge_states, fulmen_merge_states_args{}, "merge_states");
  op(fulmen_merge_state, fulmen_merge_state_args{}, "merge_state");

  fulmen_attention_spec spec{};
  spec.struct_size = sizeof spec;
  spec.head_dim_qk = spec.head_dim_vo = 16;
  fulmen_attention_limits limits{};
  limits.struct_size = sizeof limits;
  limits.max_requests = limits.max_rows = limits.max_kv_len = 1, limits.num_groups = 1;
  limits.groups[0].num_kv_heads = limits.groups[0].num_qo_heads = 1;
  fulmen_attention* attention = nullptr;
  refused(fulmen_attention_create(nullptr, &spec, &limits, &attention), "attention_create");
  refused(fulmen_attention_create(context, nullptr, &limits, &attention), "attention_create");
  refused(fulmen_attention_create(context, &spec, nullptr, &attention), "attention_create");
  refused(fulmen_attention_create(context, &spec, &limits, nullptr), "attention_create");
  ASSERT_EQ(fulmen_attention_create(context, &spec, &limits, &attention), FULMEN_OK) << fulmen_last_error();
  fulmen_attention_sizes sizes{};
  sizes.struct_size = sizeof sizes;
  refused(fulmen_attention_sizes_of(nullptr, &sizes), "attention_sizes_of");
  refused(fulmen_attention_sizes_of(attention, nullptr), "attention_sizes_of");
  ASSERT_EQ(fulmen_attention_sizes_of(attention, &sizes), FULMEN_OK);
  std::vector<uint8_t> memory(sizes.plan_bytes + sizes.scratch_bytes + 512, 0);
  auto* plan = memory.data() + (256 - reinterpret_cast<uintptr_t>(memory.data()) % 256) % 256;
  auto* scratch = plan + sizes.plan_bytes;
  fulmen_attention_lengths lengths{};
  lengths.struct_size = sizeof lengths;
  int32_t none[2] = {0, 0};
  lengths.levels[0].qo_indptr = {none, FULMEN_I32, 1, 0, 0, {1}, {1}};
  refused(fulmen_attention_plan(nullptr, &lengths, plan, nullptr), "attention_plan");
  refused(fulmen_attention_plan(attention, nullptr, plan, nullptr), "attention_plan");
  refused(fulmen_attention_plan(attention, &lengths, nullptr, nullptr), "attention_plan");
  ASSERT_EQ(fulmen_attention_plan(attention, &lengths, plan, nullptr), FULMEN_OK) << fulmen_last_error();
  EXPECT_EQ(fulmen_attention_plan(attention, &lengths, plan + 4, nullptr), FULMEN_INVALID_ARGUMENT);
  EXPECT_THAT(fulmen_last_error(), HasSubstr("plan_mem: expected 8-byte alignment"));
  fulmen_attention_tensors tensors{};
  tensors.struct_size = sizeof tensors;
  refused(fulmen_attention_run(nullptr, &tensors, plan, scratch, nullptr), "attention_run");
  refused(fulmen_attention_run(attention, nullptr, plan, scratch, nullptr), "attention_run");
  refused(fulmen_attention_run(attention, &tensors, nullptr, scratch, nullptr), "attention_run");
  refused(fulmen_attention_run(attention, &tensors, plan, nullptr, nullptr), "attention_run");
  refused(fulmen_scratch_init(nullptr, scratch, 256, nullptr), "scratch_init");
  refused(fulmen_scratch_init(context, nullptr, 256, nullptr), "scratch_init");
  fulmen_attention_destroy(attention);
  fulmen_attention_destroy(nullptr);

  refused(fulmen_context_create(nullptr, nullptr), "context_create");
  refused(fulmen_seal(nullptr), "seal");
  refused(fulmen_prepare(nullptr, nullptr, 0, nullptr, nullptr), "prepare");
  refused(fulmen_prepare(context, nullptr, 2, nullptr, nullptr), "prepare");
  EXPECT_NE(fulmen_prepare(context, nullptr, -1, nullptr, nullptr), FULMEN_OK);
  refused(fulmen_prepare_target(nullptr, nullptr, nullptr, 0, nullptr, nullptr), "prepare_target");
  refused(fulmen_info(nullptr), "info");
  fulmen_op_spec op_spec{};
  op_spec.struct_size = sizeof op_spec;
  char* text = nullptr;
  refused(fulmen_explain("cpu", &op_spec, nullptr), "explain");
  refused(fulmen_explain("cpu", nullptr, &text), "explain");
  refused(fulmen_supports("cpu", nullptr), "supports");
  EXPECT_NE(fulmen_supports(nullptr, &op_spec), FULMEN_OK);
  EXPECT_NE(fulmen_explain(nullptr, &op_spec, &text), FULMEN_OK);
  EXPECT_NE(fulmen_supports("cpu", &op_spec), FULMEN_OK) << "attention without a spec";
  for (const char* target : {"", "sm_", "sm_80\xff\xfe", "sm_99999999999999999999", "sm_-80", "gpu", "sm_75", "sm_80x"}) {
    op_spec.op = FULMEN_OP_ROPE;
    EXPECT_EQ(fulmen_supports(target, &op_spec), FULMEN_INVALID_ARGUMENT) << target;
    EXPECT_EQ(fulmen_explain(target, &op_spec, &text), FULMEN_INVALID_ARGUMENT) << target;
  }
  op_spec.op = 99;
  EXPECT_EQ(fulmen_supports("cpu", &op_spec), FULMEN_INVALID_ARGUMENT);
  EXPECT_NE(fulmen_op_name(static_cast<fulmen_op>(-1)), nullptr);
  EXPECT_NE(fulmen_status_name(static_cast<fulmen_status>(1234)), nullptr);
  fulmen_string_free(nullptr);
  EXPECT_EQ(fulmen_context_num_workers(nullptr), 0);
  fulmen_context_destroy(context);
  fulmen_context_destroy(nullptr);
}

TEST(Abi, RefusesWrongContexts) {
  const auto refused = [](auto&& change) {
    fulmen_context_options options{};
    options.struct_size = sizeof options;
    change(options);
    fulmen_context* context = reinterpret_cast<fulmen_context*>(1);
    EXPECT_NE(fulmen_context_create(&options, &context), FULMEN_OK);
    EXPECT_EQ(context, nullptr);
    EXPECT_THAT(fulmen_last_error(), StartsWith("context_create: "));
  };
  refused([](auto& o) { o.num_threads = -1; });
  refused([](auto& o) { o.num_threads = 5000; });
  refused([](auto& o) { o.device_type = 77; });
  refused([](auto& o) { o.device_type = -1; });
  refused([](auto& o) { o.device_index = 3; });
  refused([](auto& o) { o.struct_size = 3; });
}

// Limits whose memory or arithmetic can't be: refused, never wrapped around.
TEST(Abi, RefusesAbsurdLimits) {
  Calls calls;
  const auto status = [&](auto&& change) {
    const auto call = calls.make(10, 0);
    change(*reinterpret_cast<fulmen_attention_limits*>(call->args));
    return call->checked_run();
  };
  EXPECT_EQ(status([](auto&) {}), FULMEN_OK);
  for (const int64_t value : {int64_t{0}, int64_t{-1}, INT64_MIN, INT64_MAX, int64_t{1} << 31}) {
    EXPECT_EQ(status([&](auto& l) { l.max_requests = value; }), FULMEN_INVALID_ARGUMENT) << value;
    EXPECT_EQ(status([&](auto& l) { l.max_rows = value; }), FULMEN_INVALID_ARGUMENT) << value;
    EXPECT_EQ(status([&](auto& l) { l.max_kv_len = value; }), FULMEN_INVALID_ARGUMENT) << value;
    if (value != 0) EXPECT_EQ(status([&](auto& l) { l.max_qo_len = value; }), FULMEN_INVALID_ARGUMENT) << value;
  }
  for (const int32_t value : {-1, 5, INT32_MIN, INT32_MAX}) {
    EXPECT_EQ(status([&](auto& l) { l.num_levels = value; }), FULMEN_INVALID_ARGUMENT) << value;
  }
  for (const int32_t value : {0, -1, 9, INT32_MIN, INT32_MAX}) {
    EXPECT_EQ(status([&](auto& l) { l.num_groups = value; }), FULMEN_INVALID_ARGUMENT) << value;
    if (value != 9) EXPECT_NE(status([&](auto& l) { l.groups[0].num_kv_heads = value; }), FULMEN_OK) << value;
  }
  EXPECT_NE(status([](auto& l) { l.groups[0].num_qo_heads = l.groups[0].num_kv_heads = INT32_MAX, l.max_rows = 1 << 30, l.max_kv_len = 1 << 30; }), FULMEN_OK);
  EXPECT_NE(status([](auto& l) { l.groups[0].window_left = -2; }), FULMEN_OK);
  EXPECT_NE(status([](auto& l) { l.groups[0].causal = 2; }), FULMEN_OK);
  EXPECT_NE(status([](auto& l) { l.num_sms = -1; }), FULMEN_OK);
}

TEST(Abi, RunRefusesMemoryWithoutAPlan) {
  Calls calls;
  fulmen_context* context = nullptr;
  ASSERT_EQ(fulmen_context_create(nullptr, &context), FULMEN_OK);
  fulmen_attention_spec spec{};
  spec.struct_size = sizeof spec;
  spec.head_dim_qk = spec.head_dim_vo = 8;
  fulmen_attention_limits limits{};
  limits.struct_size = sizeof limits;
  limits.max_requests = 2, limits.max_rows = 4, limits.max_kv_len = 9, limits.num_groups = 1;
  limits.groups[0] = {sizeof(fulmen_attention_group), 1, 1, 1, -1};
  fulmen_attention *small = nullptr, *large = nullptr;
  ASSERT_EQ(fulmen_attention_create(context, &spec, &limits, &small), FULMEN_OK);
  limits.max_requests = 1000;
  ASSERT_EQ(fulmen_attention_create(context, &spec, &limits, &large), FULMEN_OK);
  fulmen_attention_sizes sizes{};
  sizes.struct_size = sizeof sizes;
  fulmen_attention_sizes_of(large, &sizes);
  std::vector<uint64_t> plan(sizes.plan_bytes / 8 + 1), memory(sizes.scratch_bytes / 8 + 32);
  void* scratch = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  float rows[8] = {};
  int32_t zeros[2] = {0, 0}, table[1] = {0};
  fulmen_attention_tensors t{};
  t.struct_size = sizeof t;
  t.page_size = 1;
  t.q = t.o = {rows, FULMEN_F32, 3, 0, 0, {0, 1, 8}, {8, 8, 1}};
  t.k = t.v = {rows, FULMEN_F32, 4, 0, 0, {1, 1, 1, 8}, {8, 8, 8, 1}};
  t.kv[0].table = {table, FULMEN_I32, 2, 0, 0, {1, 1}, {1, 1}};
  for (const uint64_t fill : {uint64_t{0}, ~uint64_t{0}, uint64_t{0x0101010101010101}}) {
    std::fill(plan.begin(), plan.end(), fill);
    EXPECT_EQ(fulmen_attention_run(large, &t, plan.data(), scratch, nullptr), FULMEN_INVALID_ARGUMENT);
    EXPECT_THAT(fulmen_last_error(), HasSubstr("plan_mem: expected a plan"));
  }
  fulmen_attention_lengths lengths{};
  lengths.struct_size = sizeof lengths;
  lengths.levels[0].qo_indptr = {zeros, FULMEN_I32, 1, 0, 0, {1}, {1}};
  ASSERT_EQ(fulmen_attention_plan(large, &lengths, plan.data(), nullptr), FULMEN_OK) << fulmen_last_error();
  EXPECT_EQ(fulmen_attention_run(large, &t, plan.data(), scratch, nullptr), FULMEN_OK) << fulmen_last_error();
  EXPECT_EQ(fulmen_attention_run(small, &t, plan.data(), scratch, nullptr), FULMEN_INVALID_ARGUMENT) << "another handle's plan";
  fulmen_attention_destroy(small);
  fulmen_attention_destroy(large);
  fulmen_context_destroy(context);
}

TEST(Abi, AnOlderCallersSpecsAreSmaller) {
  fulmen_context* context = nullptr;
  ASSERT_EQ(fulmen_context_create(nullptr, &context), FULMEN_OK);
  struct Old {
    size_t struct_size;
    int32_t op, dtype;
  } old[2] = {{sizeof(Old), FULMEN_OP_ROPE, FULMEN_F32}, {sizeof(Old), FULMEN_OP_ROPE, FULMEN_U8}};
  const auto* specs = reinterpret_cast<const fulmen_op_spec*>(old);
  EXPECT_EQ(fulmen_prepare(context, specs, 1, nullptr, nullptr), FULMEN_OK) << fulmen_last_error();
  EXPECT_EQ(fulmen_prepare(context, specs, 2, nullptr, nullptr), FULMEN_UNSUPPORTED);
  fulmen_context_destroy(context);
}

// Seeded mutations of valid calls. FULMEN_ABI_SECONDS makes it longer, FULMEN_TEST_SEED starts elsewhere.
TEST(Abi, SurvivesMutations) {
  const char *seconds = std::getenv("FULMEN_ABI_SECONDS"), *seed = std::getenv("FULMEN_TEST_SEED");
  const auto limit = std::chrono::milliseconds(seconds ? std::atoi(seconds) * 1000 : 3000);
  std::mt19937 random(seed ? static_cast<unsigned>(std::atoi(seed)) : 1u);
  std::printf("seed %s\n", seed ? seed : "1");
  Calls calls;
  const auto start = std::chrono::steady_clock::now();
  int64_t rounds = 0, accepted = 0;
  for (; std::chrono::steady_clock::now() - start < limit && (seconds || rounds < 60000); ++rounds) {
    accepted += abi_target(calls, [&] { return static_cast<uint32_t>(random()); });
  }
  std::printf("%ld calls, %ld accepted\n", static_cast<long>(rounds), static_cast<long>(accepted));
  EXPECT_GT(accepted, rounds / 50);  // some changes are harmless
  EXPECT_LT(accepted, rounds * 3 / 4);
}

TEST(Abi, TakesTheCorpus) {
  Calls calls(1);
  int inputs = 0;
  for (const auto& entry : std::filesystem::directory_iterator(FULMEN_SOURCE_DIR "/tests/fuzz/corpus/abi")) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    abi_target(calls, bytes_source(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()));
    ++inputs;
  }
  EXPECT_GE(inputs, 5);
}

}  // namespace
}  // namespace fulmen::fuzz
