// Shared-prefix levels of attend_sm80 in the emulator: prefill tiles over the rows of many requests, decode tiles over their own
// keys, joined in the same launch by whoever comes last.
#include "kernels/attention_batch.hpp"
#include "kernels/cases.hpp"
#include "kernels/seeds.hpp"

namespace fulmen::attention_test {
namespace {

const Kernel kMixed = kernel<small_config(true, true, false)>("attend_sm80 levels, decode and prefill tiles");
const Kernel kShortSteps = kernel<small_config(true, true, false, 16, 32)>("attend_sm80 levels, steps of 32");
const Kernel kPrefill = kernel<small_config(false, true, false)>("attend_sm80 levels, prefill tiles");
constexpr AttendVariants kAll{.soft_cap = true, .alibi = true, .sinks = true, .rope = true, .custom_mask = true};
const Kernel kMixedVariants = kernel<small_config(true, true, false, kAll)>("attend_sm80 levels, all variants, decode and prefill tiles");
const Kernel kPrefillVariants = kernel<small_config(false, true, false, kAll)>("attend_sm80 levels, all variants, prefill tiles");

struct Case {
  const char* name;
  Batch batch;
};

// Requests with `rows` rows each and own keys; prefixes of consecutive requests: how many requests, how many keys.
Batch batch_of(const std::vector<std::pair<int, int>>& prefixes, const std::vector<std::pair<int, int>>& requests) {
  Batch b;
  Level shared, own;
  int name = 1000, row = 0;
  size_t r = 0;
  for (const auto& [count, keys] : prefixes) {
    int rows = 0;
    for (int i = 0; i < count; ++i) rows += requests[r++].first;
    shared.rows.push_back(rows);
    shared.keys.push_back(names(name, keys));
    name += 10000;
  }
  for (const auto& [rows, keys] : requests) {
    own.rows.push_back(rows);
    own.keys.push_back(names(name, keys));
    name += 10000;
    row += rows;
  }
  b.levels = {shared, own};
  b.row_names = names(1, row);
  return b;
}

Batch with(Batch b, void (*change)(Batch&)) {
  change(b);
  return b;
}

// Three levels: a system prompt, two examples, their requests.
Batch three_levels() {
  Batch b;
  b.levels = {{{9}, {names(1000, 130)}},
              {{5, 4}, {names(2000, 70), names(3000, 128)}},
              {{1, 3, 1, 2, 2}, {names(4000, 1), names(5000, 66), names(6000, 0), names(7000, 40), names(8000, 129)}}};
  b.row_names = names(1, 9);
  b.workers = 5;
  return b;
}

std::vector<Case> make_cases() {
  const Batch plain = batch_of({{4, 192}}, {{1, 5}, {1, 64}, {1, 0}, {1, 100}});
  return {
      {"one prefix", plain},
      {"nothing is split", with(plain, [](Batch& b) { b.workers = 1; })},
      {"a prefix that isn't whole units", batch_of({{3, 150}}, {{1, 5}, {1, 40}, {2, 70}})},
      {"a prefix below a unit", batch_of({{2, 40}}, {{1, 5}, {1, 100}})},
      {"page size 5", with(batch_of({{3, 133}}, {{1, 7}, {1, 33}, {1, 61}}), [](Batch& b) { b.page_size = 5; })},
      {"several prefixes, some without requests or keys",
       batch_of({{2, 128}, {0, 64}, {1, 0}, {3, 200}}, {{1, 10}, {1, 70}, {1, 90}, {1, 1}, {0, 5}, {1, 3}})},
      {"many workers", with(plain, [](Batch& b) { b.workers = 13; })},
      {"more rows than one shared tile",
       with(batch_of({{5, 320}}, {{7, 20}, {4, 70}, {8, 8}, {8, 30}, {8, 9}}), [](Batch& b) { b.workers = 4; })},
      {"groups of 1 and an own window", with(plain, [](Batch& b) { b.group_size = 1, b.window_left = 90; })},
      {"group of 3, not causal", with(plain, [](Batch& b) { b.group_size = 3, b.num_kv_heads = 1, b.causal = false; })},
      {"three levels", three_levels()},
      {"rows outside any prefix", with(batch_of({{2, 128}}, {{1, 10}, {1, 70}, {1, 30}, {2, 100}}), [](Batch& b) { b.workers = 4; })},
  };
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = make_cases();
  return all;
}

void check_seed(const Case& c, const Kernel& kernel, uint64_t seed, int runs = 1) {
  const Result result = attend(c.batch, kernel, {.seed = seed, .runs = runs});
  ASSERT_TRUE(result.report.clean()) << c.name << "\n" << result.report.text();
  ASSERT_LE(result.worst, 1.0) << c.name << ", " << kernel.name;
}
void check(const Case& c, const Kernel& kernel, uint64_t seeds) {
  for (uint64_t seed = first_seed(); seed < first_seed() + seeds; ++seed) check_seed(c, kernel, seed, seed == first_seed() ? 2 : 1);
}
bool add(const Kernel& kernel) {
  return add_cases(kernel.name, cases(), [&kernel](const Case& c, uint64_t seed) { check_seed(c, kernel, seed); });
}
const bool kAdded = add(kMixed) && add(kShortSteps) && add(kPrefill) && add(kMixedVariants) && add(kPrefillVariants);

TEST(AttendSm80Levels, DecodeAndPrefillTiles) {
  for (const Case& c : cases()) check(c, kMixed, num_seeds(2));
}
TEST(AttendSm80Levels, ShortSteps) {
  for (const Case& c : cases()) check(c, kShortSteps, num_seeds(1, 10));
}
TEST(AttendSm80Levels, PrefillTiles) {
  for (const Case& c : cases()) check(c, kPrefill, num_seeds(1));
  // Chunks of prompts behind a prefix: tiles of requests that straddle the prefix's tiles.
  const Case chunks{"chunks", with(batch_of({{3, 192}}, {{40, 60}, {33, 33}, {70, 90}}), [](Batch& b) { b.workers = 5; })};
  check(chunks, kPrefill, num_seeds(1, 20));
}

TEST(AttendSm80Levels, Variants) {
  for (const Kernel* kernel : {&kMixedVariants, &kPrefillVariants}) {
    for (const Case& c : cases()) check(c, *kernel, num_seeds(1, 10));
  }
}

// Who joins, and how the line is cut into shares, leaves no trace beyond the rounding of partial states: the same cut, the same bits.
TEST(AttendSm80Levels, SameBitsForEverySeed) {
  const Batch b = three_levels();
  const Result first = attend(b, kMixed, {.seed = 1, .reference = false});
  for (uint64_t seed = 2; seed <= num_seeds(5); ++seed) {
    const Result other = attend(b, kMixed, {.seed = seed, .reference = false});
    ASSERT_TRUE(other.report.clean()) << other.report.text();
    EXPECT_EQ(first.o, other.o);
    EXPECT_EQ(first.lse, other.lse);
  }
}

}  // namespace
}  // namespace fulmen::attention_test
