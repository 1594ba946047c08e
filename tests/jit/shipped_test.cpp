// NVRTC compiles every kernel that Fulmen ships; what its log and the cubin show decides.
// FULMEN_TEST_TARGETS="sm_86 sm_89 sm_100" compiles for other machines than the two of every day.
#include "jit/shipped.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <sstream>

#include "core/error.hpp"
#include "plan/attend_sm80.hpp"
#include "support.hpp"

namespace fulmen::jit_test {
namespace {

// Three times the promise of 2 s: a busy machine passes, a kernel that is truly too slow to make does not.
constexpr double kMaxCpuSeconds = 6.0;

std::vector<std::string> targets() {
  const char* chosen = getenv("FULMEN_TEST_TARGETS");
  std::istringstream words(chosen ? chosen : "sm_80 sm_90a");
  std::vector<std::string> names;
  for (std::string name; words >> name;) names.push_back(name);
  return names;
}

// A table without rows must not look like one whose rows are good.
#define FULMEN_SKIP_WITHOUT_KERNELS() \
  if (shipped_kernels(target_by_name("sm_80")).empty()) GTEST_SKIP() << "no kernel stands in src/jit/shipped.cpp yet"

// Compiles the units on all processors, prints a row for each and reports what makes one unfit.
void compile_all(int nvrtc_major, const Target& target, const std::vector<Unit>& units) {
  const TempDir dir;
  KernelLibrary kernels(options_in(dir, nvrtc_major));
  fmt::print("NVRTC {}, {}\n{:>10} {:>6} {:>6} {:>8} {:>8} {:>8}  kernel\n", kernels.nvrtc()->version(), target.name,
             "registers", "stack", "spills", "smem", "cpu s", "cubin");
  try {
    kernels.prepare(units, target);
  } catch (const Error& error) {
    ADD_FAILURE() << error.text();
    return;
  }
  double total = 0;
  for (const Unit& unit : units) {
    const CompiledKernel& kernel = kernels.get(unit, target);
    const ResourceUsage& usage = kernel.usage;
    const int smem = usage.static_smem_bytes + unit.smem_bytes;
    fmt::print("{:>10} {:>6} {:>6} {:>8} {:>8.2f} {:>8}  {} {}\n", usage.registers, usage.stack_bytes,
               usage.spill_store_bytes + usage.spill_load_bytes, smem, kernel.cpu_seconds, kernel.cubin.size(),
               unit.kernel, unit.config_json);
    for (const std::string& fault : code_faults(kernel.log, kernel.cubin))
      ADD_FAILURE() << unit.kernel << " " << unit.config_json << " for " << target.name << ": " << fault;
    EXPECT_LE(smem, target.smem_per_block) << unit.kernel << " " << unit.config_json;
    // A kernel with two classes of tile is two kernels to the compiler.
    const bool mixed = unit.config_json.find("shared_warp_rows") != std::string::npos &&
                       unit.config_json.find("\"shared_warp_rows\": 0,") == std::string::npos;
    EXPECT_LE(kernel.cpu_seconds, kMaxCpuSeconds * (mixed ? 2 : 1)) << unit.kernel << " " << unit.config_json;
    EXPECT_LT(std::ranges::count(program_text(unit), '\n'), 20) << program_text(unit);
    total += kernel.cpu_seconds;
  }
  fmt::print("{} kernels, {:.1f} s of CPU time\n", units.size(), total);
}

TEST(Shipped, EveryKernelCompilesCleanlyWithNvrtc13) {
  FULMEN_SKIP_WITHOUT_KERNELS();
  for (const std::string& name : targets()) {
    const Target& target = target_by_name(name);
    std::vector<Unit> units;
    for (ShippedKernel& kernel : shipped_kernels(target)) units.push_back(std::move(kernel.unit));
    compile_all(13, target, units);
  }
}

// Attention's variants: each at one head size or more, all at once, and what models use.
TEST(Shipped, AttentionVariantsCompileCleanly) {
  struct Row {
    uint32_t features;
    int head_dim;
  };
  constexpr Row kRows[] = {
      {FULMEN_ATTENTION_SOFT_CAP, 128},  {FULMEN_ATTENTION_SOFT_CAP, 256},
      {FULMEN_ATTENTION_ALIBI, 128},     {FULMEN_ATTENTION_ALIBI, 64},
      {FULMEN_ATTENTION_SINKS, 64},      {FULMEN_ATTENTION_SINKS, 128},
      {FULMEN_ATTENTION_ROPE, 128},      {FULMEN_ATTENTION_ROPE, 64},
      {FULMEN_ATTENTION_CUSTOM_MASK, 128}, {FULMEN_ATTENTION_CUSTOM_MASK, 256},
      {FULMEN_ATTENTION_NO_SOFTMAX, 128},
      {FULMEN_ATTENTION_SOFT_CAP | FULMEN_ATTENTION_ALIBI | FULMEN_ATTENTION_SINKS | FULMEN_ATTENTION_ROPE | FULMEN_ATTENTION_CUSTOM_MASK, 128},
  };
  for (const std::string& name : targets()) {
    const Target& target = target_by_name(name);
    std::vector<Unit> units;
    for (const Row& row : kRows) {
      fulmen_attention_spec spec{};
      spec.q_dtype = spec.kv_dtype = spec.o_dtype = FULMEN_BF16;
      spec.head_dim_qk = spec.head_dim_vo = row.head_dim;
      spec.features = row.features;
      for (Unit& unit : attend_sm80_units(target, spec, 1)) units.push_back(std::move(unit));
    }
    for (const int head_dim : {64, 128, 256}) {  // for tensors of any layout
      for (const int64_t rows : {16, 128}) {
        if (head_dim == 256 && rows == 16) continue;  // spills a few bytes on sm_80, and is never on the hot path
        const AttendProblem problem{.dtype = DType::f16, .o_dtype = DType::f16, .head_dim_qk = head_dim, .head_dim_vo = head_dim,
                                    .packed_rows = rows, .num_levels = 1, .canonical = false, .num_sms = target.num_sms};
        AttendSm80Config config = choose_attend_sm80(problem, target).config;
        config.general = true;
        units.push_back(attend_sm80_unit(config));
      }
    }
    compile_all(13, target, units);
  }
}

// The oldest compiler sees one kernel of each name: what it lacks in the language shows in the first.
TEST(Shipped, OneOfEachCompilesCleanlyWithNvrtc12) {
  FULMEN_SKIP_WITHOUT_KERNELS();
  for (const std::string& name : targets()) {
    const Target& target = target_by_name(name);
    if (target.major >= 10) continue;  // NVRTC 12.4 knows none of these
    std::map<std::string, Unit> first;
    for (ShippedKernel& kernel : shipped_kernels(target)) first.emplace(kernel.unit.kernel, std::move(kernel.unit));
    std::vector<Unit> units;
    for (auto& [kernel, unit] : first) units.push_back(std::move(unit));
    compile_all(12, target, units);
  }
}

TEST(Shipped, UnitsAreDistinct) {
  FULMEN_SKIP_WITHOUT_KERNELS();
  std::map<std::string, int> seen;
  for (const ShippedKernel& kernel : shipped_kernels(target_by_name("sm_80")))
    EXPECT_EQ(seen[program_text(kernel.unit) + kernel.unit.user_source]++, 0) << program_text(kernel.unit);
}

}  // namespace
}  // namespace fulmen::jit_test
