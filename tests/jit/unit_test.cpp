// From a config struct to the program text, its sources and its key: pure, no compiler needed.
#include "jit/unit.hpp"

#include <gmock/gmock.h>

#include <fstream>
#include <set>
#include <sstream>

#include "core/error.hpp"
#include "jit/key.hpp"
#include "support.hpp"

namespace fulmen::jit_test {

enum class Order { sequential, joint };
constexpr const char* enumerator(Order order) {
  return order == Order::joint ? "Order::joint" : "Order::sequential";
}

struct TileConfig {
  int rows = 16, keys = 64;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("rows", rows);
    field("keys", keys);
  }
};

struct FilterConfig {
  DType dtype = DType::bf16;
  Order order = Order::joint;
  bool ragged = true;
  TileConfig tile;
  template <class Visitor>
  constexpr void visit(Visitor&& field) const {
    field("dtype", dtype);
    field("order", order);
    field("ragged", ragged);
    field("tile", tile);
  }
  constexpr int num_threads() const { return 4 * tile.keys; }
  constexpr int smem_bytes() const { return tile.rows * tile.keys * dtype_bytes(dtype); }
};

struct NoConfig {
  template <class Visitor>
  constexpr void visit(Visitor&&) const {}
};

struct FilterParams {
  const void* in;
  int64_t stride;
};

namespace {

Unit filter_unit() {
  return make_unit<FilterParams>("filter", {"kernels/sampling/filter.cuh"}, "FilterConfig", FilterConfig{},
                                 "FilterParams", "filter<kConfig>(params);");
}

TEST(Unit, PrintsAConfigAsItsInitializerAndAsJson) {
  EXPECT_EQ(literal(FilterConfig{}),
            "{.dtype = DType::bf16, .order = Order::joint, .ragged = true, .tile = {.rows = 16, .keys = 64}}");
  EXPECT_EQ(json(FilterConfig{}),
            R"({"dtype": "bf16", "order": "joint", "ragged": true, "tile": {"rows": 16, "keys": 64}})");
  EXPECT_EQ(literal(NoConfig{}), "{}");
  EXPECT_EQ(json(NoConfig{}), "{}");
}

TEST(Unit, NamesEveryDType) {
  std::set<std::string> names;
  for (int i = 0; i < 10; ++i) names.insert(enumerator(static_cast<DType>(i)));
  EXPECT_EQ(names.size(), 10u);
  EXPECT_EQ(names.count("DType(-1)"), 0u);
}

TEST(Unit, ProgramTextIsExactlyThis) {
  EXPECT_EQ(program_text(filter_unit()),
            R"(// filter {"dtype": "bf16", "order": "joint", "ragged": true, "tile": {"rows": 16, "keys": 64}}
#include <kernels/sampling/filter.cuh>
using namespace fulmen;
constexpr FilterConfig kConfig{.dtype = DType::bf16, .order = Order::joint, .ragged = true, .tile = {.rows = 16, .keys = 64}};
static_assert(sizeof(FilterParams) == 16, "host and device disagree");
static_assert(kConfig.smem_bytes() == 2048, "host and device disagree");
static_assert(kConfig.num_threads() == 256, "host and device disagree");
extern "C" __global__ void __launch_bounds__(256, 1)
fulmen_entry(const __grid_constant__ FilterParams params) { filter<kConfig>(params); }
)");
}

TEST(Unit, TakesLaunchNumbersFromTheConfig) {
  const Unit unit = filter_unit();
  EXPECT_EQ(unit.num_threads, 256);
  EXPECT_EQ(unit.smem_bytes, 2048);
  EXPECT_EQ(unit.min_blocks, 1);
}

TEST(Unit, AUserVariantIsIncludedAfterTheKernel) {
  Unit unit = filter_unit();
  unit.user_source = "struct Mine {};";
  unit.params.push_back({"Mine::Params", "variant"});
  const std::string text = program_text(unit);
  EXPECT_THAT(text, testing::HasSubstr("filter.cuh>\n#include <user/variant.hpp>\n"));
  EXPECT_THAT(text, testing::HasSubstr("params, const __grid_constant__ Mine::Params variant)"));
}

const Sources kTree = {
    {"kernels/a.cuh", "#pragma once\n#include <kernels/b.hpp>\n  # include <kernels/c.hpp>  // twice reached\n"},
    {"kernels/b.hpp", "#include <kernels/c.hpp>\n#include <stddef.h>\n// #include <kernels/no.hpp>\n"},
    {"kernels/c.hpp", "#include <kernels/a.cuh>"},
    {"kernels/d.hpp", "int not_reached;"},
};

TEST(Sources, ReachesWhatIsIncludedAndNothingElse) {
  std::vector<std::string> names;
  for (const auto& [name, text] : reached_sources("#include <kernels/a.cuh>\n", kTree)) names.push_back(name);
  EXPECT_THAT(names, testing::ElementsAre("kernels/a.cuh", "kernels/b.hpp", "kernels/c.hpp"));
  EXPECT_TRUE(reached_sources("int x;", kTree).empty());
}

TEST(Sources, NamesAMissingFile) {
  try {
    reached_sources("#include <kernels/gone.cuh>", kTree);
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_THAT(error.text(), testing::HasSubstr("kernels/gone.cuh"));
  }
}

TEST(Sources, TheEmbeddedTableIsTheTree) {
  const Sources tree = read_sources(FULMEN_SOURCE_DIR);
  EXPECT_EQ(embedded_sources().size(), tree.size());
  for (const auto& [name, text] : tree) {
    ASSERT_TRUE(embedded_sources().contains(name)) << name;
    EXPECT_EQ(embedded_sources().at(name), text) << name;
  }
}

TEST(Sources, KernelsIncludeNothingOutsideKernels) {
  for (const auto& [name, text] : embedded_sources()) {
    EXPECT_NO_THROW(reached_sources(text, embedded_sources())) << name;
    EXPECT_THAT(text, testing::Not(testing::HasSubstr("#include \""))) << name;
  }
}

TEST(Sources, AFolderWithoutKernelsIsRefused) {
  const TempDir dir;
  EXPECT_THROW(read_sources(dir.path()), Error);
  EXPECT_THROW(read_sources(dir / "missing"), Error);
}

TEST(Key, ChangesWithEveryInput) {
  const Target& sm_80 = target_by_name("sm_80");
  const std::vector<std::string> options = compile_options(sm_80);
  std::set<std::string> names;
  const auto add = [&](const std::string& program, const Sources& sources, const std::vector<std::string>& options) {
    const std::string key = key_text(program, sources, options);
    EXPECT_EQ(key, key_text(program, sources, options));
    names.insert(key_name(key));
  };
  add("int x;", {}, options);
  add("int y;", {}, options);
  add("int x;", {}, compile_options(target_by_name("sm_86")));
  add("int x;", {{"kernels/a.hpp", "1"}}, options);
  add("int x;", {{"kernels/a.hpp", "2"}}, options);
  add("int x;", {{"kernels/b.hpp", "1"}}, options);
  add("int x;", {{"kernels/a.hpp", ""}, {"kernels/b.hpp", "1"}}, options);
  EXPECT_EQ(names.size(), 7u);
  for (const std::string& name : names) EXPECT_EQ(name.size(), 32u);
}

TEST(Key, LengthsKeepTwoInputsApart) {
  // Without the lengths both would read "a 1\nx\nb 1\ny\n".
  EXPECT_NE(key_text("", {{"kernels/a", "x\nkernels/b 1\ny"}}, {}), key_text("", {{"kernels/a", "x"}, {"kernels/b", "y"}}, {}));
}

TEST(Targets, AreKnownByName) {
  EXPECT_TRUE(target_by_name("sm_90a").runs_sm90a());
  EXPECT_FALSE(target_by_name("sm_90").runs_sm90a());
  EXPECT_EQ(target_by_name("sm_80").smem_per_block, 166912);
  EXPECT_THROW(target_by_name("sm_70"), Error);
  EXPECT_EQ(arch_of(8, 6), "sm_86");
  EXPECT_EQ(arch_of(9, 0), "sm_90a");
  EXPECT_EQ(arch_of(12, 0), "sm_120");
  for (const Target& target : named_targets()) {
    EXPECT_LT(target.smem_per_block, target.smem_per_sm) << target.name;
    EXPECT_GT(target.num_sms, 0) << target.name;
  }
}

}  // namespace
}  // namespace fulmen::jit_test
