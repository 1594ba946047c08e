// The plan kernel in the emulator against plan_serial, the host's plan: the same numbers, lengths that are out of bounds included.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#include "emulator/emulator.hpp"
#include "kernels/cases.hpp"
#include "kernels/seeds.hpp"
#include <kernels/attention/plan.cuh>

namespace fulmen {
namespace {

using emulator::Buffer;

// A segment a thread; all segments in one span; several spans of runs.
template <PlanConfig kPlan>
__attribute__((noinline)) void plan_kernel(const PlanParams& p) {
  plan_attention<kPlan>(p);
}
struct Kernel {
  uint32_t threads;
  void (*run)(const PlanParams&);
};
constexpr Kernel kKernels[] = {{128, plan_kernel<PlanConfig{.threads = 128, .each = 1}>},
                               {128, plan_kernel<PlanConfig{.threads = 128, .each = 4}>},
                               {32, plan_kernel<PlanConfig{.threads = 32, .each = 3}>}};

struct Level {
  std::vector<int64_t> qo_indptr, kv_len;
};
struct Case {
  const char* name;
  std::vector<Level> levels;
};

std::vector<int64_t> steps(int n, int64_t each) {
  std::vector<int64_t> v;
  for (int i = 0; i <= n; ++i) v.push_back(i * each);
  return v;
}

const Case kCases[] = {
    {"one request", {{{0, 5}, {70}}}},
    {"nothing", {{{0, 0, 0}, {0, 3}}}},
    {"no request", {{{0}, {}}}},
    {"tiles that are all alike", {{{0, 1, 2}, {640, 640}}}},
    {"as many requests as threads", {{steps(128, 1), std::vector<int64_t>(128, 129)}}},
    {"more requests than threads", {{steps(300, 1), std::vector<int64_t>(300, 129)}}},
    {"two levels", {{{0, 6}, {128}}, {{0, 2, 4, 6}, {10, 0, 70}}}},
    {"length out of bounds", {{{0, 1, 2, 3}, {10, 1 << 20, 5}}}},
    {"negative length", {{{0, 1, 2, 3}, {10, -4, 5}}}},
    {"falling rows", {{{0, 8, 4, 9}, {20, 20, 20}}}},
    {"rows out of bounds", {{{0, 8, 100000, 9}, {20, 20, 20}}}},
};

// All that a plan says, as one row of numbers.
std::vector<int64_t> numbers(const ScheduleShape& shape, const void* memory) {
  const PlanView plan(shape, memory);
  const PlanHeader& h = *plan.header;
  std::vector<int64_t> all{h.status.fault, h.status.request, h.status.value, h.status.limit, h.status.level, h.num_levels, h.total_rows};
  for (int32_t g = 0; g < shape.num_groups; ++g) {
    for (int32_t l = 0; l <= shape.num_levels; ++l) {
      all.push_back(h.level_cost[g][l]);
      all.push_back(h.level_tiles[g][l]);
    }
    all.push_back(h.share[g]);
    all.push_back(h.gap[g]);
  }
  for (int32_t l = 0; l < shape.num_levels; ++l) {
    const int32_t n = h.num_segments[l];
    all.push_back(n);
    for (int32_t s = 0; s <= n; ++s) {
      all.push_back(plan.row_begin(l)[s]);
      for (int32_t g = 0; g < shape.num_groups; ++g) {
        all.push_back(plan.cost_prefix(g, l)[s]);
        all.push_back(plan.tile_prefix(g, l)[s]);
      }
      if (s == n) continue;
      all.push_back(plan.key_begin(l)[s]);
      all.push_back(plan.key_end(l)[s]);
      all.push_back(plan.parent(l)[s]);
    }
  }
  return all;
}

// Where the workers start, as the plan kernel wrote it and as a search on the host finds it.
bool right_starts(const ScheduleShape& shape, void* memory, void* host_memory) {
  if (shape.num_levels > 1) return true;
  const PlanView plan(shape, host_memory);
  const PlanHeader& h = *plan.header;
  for (int32_t g = 0; g < shape.num_groups; ++g) {
    for (int32_t w = 0; w < shape.groups[g].num_workers; ++w) {
      WorkerStart expected;
      find_start(shape, plan, g, w, expected);
      if (std::memcmp(&expected, &worker_start(shape, memory, g, w), sizeof expected) != 0) return false;
    }
  }
  return true;
}

emulator::Attempt run(const Case& c, const Kernel& kernel, uint64_t seed) {
  PlanParams params{};
  ScheduleShape& shape = params.shape;
  shape.max_requests = 320;
  shape.max_rows = 1000;
  shape.max_qo_len = 512;
  shape.max_kv_len = 4096;
  shape.num_levels = static_cast<int32_t>(c.levels.size());
  shape.num_groups = 2;
  shape.unit_log2 = 6;
  shape.groups[0] = {2, 4, 1, -1, 64, 7, 1, 1};
  shape.groups[1] = {1, 8, 0, 100, 16, 7, 2, 0, 0, 0, 0, c.levels.size() == 1 ? 1 : 0, c.levels.size() == 1 ? 2 : 0};
  std::vector<Buffer<int64_t>> arrays;
  ScheduleLengths lengths{};
  lengths.num_levels = shape.num_levels;
  lengths.page_size = 16;
  for (size_t l = 0; l < c.levels.size(); ++l) {
    arrays.push_back(Buffer<int64_t>::input("qo_indptr", c.levels[l].qo_indptr));
    const int64_t* indptr = arrays.back().data();
    arrays.push_back(Buffer<int64_t>::input("kv_len", c.levels[l].kv_len));
    lengths.levels[l] = {indptr, arrays.back().data(), nullptr, nullptr, static_cast<int32_t>(c.levels[l].kv_len.size()), 1, 1, 0, 0};
  }
  auto memory = Buffer<char>::output("plan", static_cast<size_t>(plan_bytes(shape)));
  params.lengths = lengths;
  params.plan = memory.data();
  emulator::Attempt attempt;
  attempt.report = emulator::launch({.name = "plan_attention", .grid = {1}, .block = {kernel.threads}, .seed = seed, .overlapped = true},
                                    kernel.run, params);
  std::vector<int64_t> expected(static_cast<size_t>(plan_bytes(shape)) / 8);
  plan_serial(shape, lengths, expected.data());
  attempt.right = attempt.report.clean() && numbers(shape, memory.data()) == numbers(shape, expected.data()) &&
                  right_starts(shape, memory.data(), expected.data());
  return attempt;
}

void check(const Case& c, uint64_t seed) {
  for (const Kernel& kernel : kKernels) {
    const emulator::Attempt attempt = run(c, kernel, seed);
    ASSERT_TRUE(attempt.report.clean()) << c.name << "\n" << attempt.report.text();
    ASSERT_TRUE(attempt.right) << c.name << ", " << kernel.threads << " threads, seed " << seed;
  }
}
const bool kAdded = add_cases("plan_attention", kCases, check);

TEST(PlanKernel, SameAsTheHosts) {
  for (const Case& c : kCases) {
    for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(5); ++seed) check(c, seed);
  }
}

}  // namespace
}  // namespace fulmen
