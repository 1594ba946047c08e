// The command `fulmen emulate`: runs cases of the kernels' tests in the emulator and prints what they cost and what is wrong.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>

#include "emulator/emulator.hpp"
#include "kernels/cases.hpp"

namespace fulmen {
namespace {

using emulator::AccessCount;
using emulator::Counters;
using emulator::Launch;
using emulator::Report;

constexpr const char* kUsage =
    "usage: fulmen emulate [--seed N] CASE    runs one case and prints counts and faults; CASE may be a part of its name\n"
    "       fulmen emulate --list             names of all cases\n"
    "       fulmen emulate --seeds N [CASE]   all cases, or those that CASE names (!CASE: all others), with seeds 1 to N\n"
    "       fulmen emulate --ceilings         compares bank conflicts and global bytes with tests/kernels/ceilings.txt\n";

double ratio(uint64_t a, uint64_t b) { return b == 0 ? 1.0 : static_cast<double>(a) / static_cast<double>(b); }

void print_counts(const Launch& launch, const Report& report) {
  const Counters& n = report.counters;
  fmt::print("kernel {}, grid {} x {} x {}, block {}, seed {}\n", launch.name, launch.grid.x, launch.grid.y, launch.grid.z,
             launch.block.x * launch.block.y * launch.block.z, launch.seed);
  fmt::print("  global memory        {} bytes read, {} written; {:.2f} times the least\n", n.global_read_bytes, n.global_write_bytes,
             ratio(n.global_warp_bytes, n.global_least_bytes));
  fmt::print("  sectors              {} of 32 bytes\n", n.global_sectors);
  fmt::print("  shared memory        {} bytes, {} passes, {} without bank conflicts\n", n.shared_bytes, n.shared_wavefronts, n.shared_ideal_wavefronts);
  fmt::print("  matrix instructions  {}\n", n.matrix_instructions);
  fmt::print("  barriers             {} threads came to one\n", n.barrier_waits);
  fmt::print("  warp collectives     {}\n  async copies         {}\n  atomics              {}\n", n.warp_collectives, n.async_copies, n.atomics);
  // An inlined loop is many instructions of one line.
  std::map<std::pair<std::string, bool>, AccessCount> of_line;
  for (const AccessCount& a : report.accesses) {
    AccessCount& sum = of_line[{a.where, a.shared}];
    sum.where = a.where.substr(0, a.where.find(" <- ", a.where.find(" <- ") + 1));  // and who called it
    sum.shared = a.shared;
    sum.cost += a.cost;
    sum.ideal += a.ideal;
  }
  std::vector<AccessCount> costly;
  for (auto& [line, sum] : of_line) costly.push_back(std::move(sum));
  std::ranges::sort(costly, std::greater<>(), [](const AccessCount& a) { return a.cost - a.ideal; });
  bool heading = true;
  for (size_t i = 0; i < costly.size() && i < 10 && costly[i].cost > costly[i].ideal; ++i) {
    if (heading) fmt::print("  accesses that cost more than they need (passes through the banks, or sectors)\n");
    heading = false;
    fmt::print("    {:6} {:>8} of {:>8} at least, at {}\n", costly[i].shared ? "shared" : "global", costly[i].cost, costly[i].ideal, costly[i].where);
  }
  fmt::print("{}\n", report.text());
}

bool failed() { return testing::Test::HasFailure(); }

// Assertions print what they find through GoogleTest.
bool run_case(const KernelCase& c, uint64_t seed) {
  c.run(seed);
  return !failed();
}

int run_seeds(const std::string& text, uint64_t seeds) {
  size_t runs = 0, launches = 0;
  emulator::watch_launches([&](const Launch&, const Report&) { ++launches; }, false);
  std::map<std::string, size_t> of_kernel;
  const bool without = text.starts_with('!');
  const std::string named = text.substr(without ? 1 : 0);
  for (const KernelCase& c : kernel_cases()) {
    if ((c.name.find(named) == std::string::npos) != without) continue;
    for (uint64_t seed = 1; seed <= seeds; ++seed, ++runs) {
      if (!run_case(c, seed)) {
        fmt::print("{}: wrong with seed {}\n", c.name, seed);
        return 1;
      }
    }
    ++of_kernel[c.name.substr(0, c.name.find(": "))];
  }
  for (const auto& [kernel, cases] : of_kernel) fmt::print("{:<24} {:>3} cases, {} seeds each: clean\n", kernel, cases, seeds);
  fmt::print("{} runs, {} launches, no fault and no wrong result\n", runs, launches);
  return runs == 0;
}

struct Ceiling {
  std::string kernel;  // or the beginning of several kernels' names; the longest that fits holds
  double passes, bytes;
};
std::vector<Ceiling> read_ceilings() {
  std::vector<Ceiling> all;
  std::ifstream file(FULMEN_SOURCE_DIR "/tests/kernels/ceilings.txt");
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    const size_t bar = line.find(" | ");
    std::istringstream numbers(line.substr(bar + 3));
    Ceiling ceiling{line.substr(0, bar), 0, 0};
    char separator;
    numbers >> ceiling.passes >> separator >> ceiling.bytes;
    all.push_back(ceiling);
  }
  return all;
}
const Ceiling* ceiling_of(const std::vector<Ceiling>& all, const std::string& kernel) {
  const Ceiling* best = nullptr;
  for (const Ceiling& c : all) {
    if (kernel.starts_with(c.kernel) && (best == nullptr || c.kernel.size() > best->kernel.size())) best = &c;
  }
  return best;
}

// Kernels of attention that differ from another in a variant or a type alone, and the canon's comparisons of many launches: counting them
// would cost a minute. Plain kernels, and those with all variants, are counted.
bool moves_what_others_move(const std::string& name) {
  static constexpr const char* kParts[] = {"canon", "soft cap", "ALiBi", "sinks", "RoPE", "custom mask", "softmax", "f16", "o f32"};
  return name.starts_with("attend_sm80") && std::ranges::any_of(kParts, [&](const char* part) { return name.find(part) != std::string::npos; });
}

// The worst case of a kernel counts.
int check_ceilings() {
  struct Worst {
    double passes = 1, bytes = 1;
    std::string passes_case, bytes_case;
  };
  std::map<std::string, Worst> found;
  const KernelCase* running = nullptr;
  emulator::watch_launches(
      [&](const Launch& launch, const Report& report) {
        const Counters& n = report.counters;
        Worst& worst = found[launch.name];
        if (const double passes = ratio(n.shared_wavefronts, n.shared_ideal_wavefronts); passes > worst.passes) worst.passes = passes, worst.passes_case = running->name;
        if (const double bytes = ratio(n.global_warp_bytes, n.global_least_bytes); bytes > worst.bytes) worst.bytes = bytes, worst.bytes_case = running->name;
      },
      true);
  for (const KernelCase& c : kernel_cases()) {
    if (moves_what_others_move(c.name)) continue;
    running = &c;
    if (!run_case(c, 1)) return 1;
  }
  const std::vector<Ceiling> ceilings = read_ceilings();
  int wrong = 0;
  for (const auto& [kernel, worst] : found) {
    const Ceiling* ceiling = ceiling_of(ceilings, kernel);
    const bool good = ceiling != nullptr && worst.passes <= ceiling->passes && worst.bytes <= ceiling->bytes;
    wrong += !good;
    fmt::print("{:<44} passes {:5.2f} ({}), bytes {:5.2f} ({}){}\n", kernel, worst.passes, worst.passes_case, worst.bytes, worst.bytes_case,
               ceiling == nullptr ? ": no ceiling is given" : good ? "" : fmt::format(": above {} or {}", ceiling->passes, ceiling->bytes));
  }
  return wrong != 0;
}

int run(int argc, char** argv) {
  std::string text;
  uint64_t seed = 1, seeds = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--list") {
      for (const KernelCase& c : kernel_cases()) fmt::print("{}\n", c.name);
      return 0;
    }
    if (option == "--ceilings") return check_ceilings();
    if ((option == "--seed" || option == "--seeds") && i + 1 < argc) {
      (option == "--seed" ? seed : seeds) = std::strtoull(argv[++i], nullptr, 10);
    } else if (option.starts_with("-") || !text.empty()) {
      fmt::print(stderr, "{}", kUsage);
      return 2;
    } else {
      text = option;
    }
  }
  if (seeds != 0) return run_seeds(text, seeds);
  std::vector<const KernelCase*> chosen;
  for (const KernelCase& c : kernel_cases()) {
    if (c.name == text) chosen = {&c};
    if (c.name == text) break;
    if (!text.empty() && c.name.find(text) != std::string::npos) chosen.push_back(&c);
  }
  if (chosen.size() != 1) {
    fmt::print(stderr, "{}", chosen.empty() ? kUsage : "several cases have that in their names:\n");
    for (const KernelCase* c : chosen) fmt::print(stderr, "  {}\n", c->name);
    return 2;
  }
  emulator::watch_launches(print_counts, true);
  return run_case(*chosen[0], seed) ? 0 : 1;
}

}  // namespace
}  // namespace fulmen

// Assertions outside of GoogleTest's own runner are counted where no test runs.
class Emulate : public testing::Test {
 public:
  static inline int argc, status;
  static inline char** argv;
};
TEST_F(Emulate, Command) { status = fulmen::run(argc, argv); }

namespace {
class OnlyFailures : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.failed()) fmt::print("{}:{}\n{}\n", result.file_name(), result.line_number(), result.message());
  }
};
}  // namespace

int main(int argc, char** argv) {
  int one = 1;
  testing::InitGoogleTest(&one, argv);
  Emulate::argc = argc;
  Emulate::argv = argv;
  GTEST_FLAG_SET(filter, "Emulate.Command");
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  delete listeners.Release(listeners.default_result_printer());
  listeners.Append(new OnlyFailures);
  const int failed = RUN_ALL_TESTS();
  return failed != 0 ? failed : Emulate::status;
}
