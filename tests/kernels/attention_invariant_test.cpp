// The canon in attend_sm80: a row's bits are a function of its query, its keys and its position alone.
#include <map>

#include "kernels/attention_batch.hpp"
#include "kernels/cases.hpp"
#include "kernels/seeds.hpp"

namespace fulmen::attention_test {
namespace {

const Kernel kDecode = kernel<small_config(true, false, true)>("attend_sm80 canon, decode");
const Kernel kPrefill = kernel<small_config(false, false, true)>("attend_sm80 canon, prefill");
const Kernel kWidePrefill = kernel<small_config(false, false, true, 32)>("attend_sm80 canon, prefill, 32 rows a warp");
const Kernel kLevels = kernel<small_config(false, true, true)>("attend_sm80 canon, levels, prefill tiles");
constexpr AttendVariants kAll{.soft_cap = true, .alibi = true, .sinks = true, .rope = true, .custom_mask = true};
const Kernel kVariantsDecode = kernel<small_config(true, false, true, kAll)>("attend_sm80 canon, all variants, decode");
const Kernel kVariantsPrefill = kernel<small_config(false, false, true, kAll)>("attend_sm80 canon, all variants, prefill");
const Kernel kVariantsLevels = kernel<small_config(false, true, true, kAll)>("attend_sm80 canon, all variants, levels, prefill tiles");

// The tiles of long heads, which the batches' short ones fill in part: what isn't there adds nothing, so the bits are the same.
constexpr AttendSm80Config long_config(bool split_keys, bool levels, int warps, AttendVariants variants = {}) {
  AttendSm80Config c = small_config(split_keys, levels, true, variants);
  c.head_dim_qk = c.head_dim_vo = 256;
  c.warps = warps;
  return c;
}
const Kernel kLongDecode = kernel<long_config(true, false, 2)>("attend_sm80 canon, heads of 256, decode");
const Kernel kLongestDecode = kernel<long_config(true, false, 1)>("attend_sm80 canon, heads of 256, decode, one warp");
const Kernel kLongPrefill = kernel<long_config(false, false, 8)>("attend_sm80 canon, heads of 256, prefill");
constexpr AttendVariants kRope{.rope = true};  // whose chains of keys are shorter there
const Kernel kLongRopeDecode = kernel<long_config(true, false, 2, kRope)>("attend_sm80 canon, heads of 256, RoPE, decode");
const Kernel kLongRopePrefill = kernel<long_config(false, false, 8, kRope)>("attend_sm80 canon, heads of 256, RoPE, prefill");
const Kernel kLongLevels = kernel<long_config(false, true, 8)>("attend_sm80 canon, heads of 256, levels");
const Kernel kLongVariantsDecode =
    kernel<long_config(true, false, 2, kAll)>("attend_sm80 canon, heads of 256, all variants, decode");
const Kernel kLongVariantsPrefill =
    kernel<long_config(false, false, 8, kAll)>("attend_sm80 canon, heads of 256, all variants, prefill");

// The bits of each row, o and then lse, by the row's name.
using Bits = std::map<int, std::vector<uint32_t>>;
Bits bits_of(const Batch& b, const Kernel& kernel, uint64_t seed = 1, bool reference = false) {
  const Result result = attend(b, kernel, {.seed = seed, .reference = reference});
  EXPECT_TRUE(result.report.clean()) << kernel.name << "\n" << result.report.text();
  if (reference) {
    EXPECT_LE(result.worst, 1.0) << kernel.name;
  }
  Bits bits;
  if (!result.report.clean()) return bits;
  const size_t heads = b.heads();
  for (size_t row = 0; row < b.row_names.size(); ++row) {
    auto& words = bits[b.row_names[row]];
    for (size_t i = row * heads * b.dim; i < (row + 1) * heads * b.dim; ++i) words.push_back(result.o[i]);
    for (size_t i = row * heads; i < (row + 1) * heads; ++i) words.push_back(float_bits(result.lse[i]));
  }
  return bits;
}
void expect_same(const Bits& some, const Bits& all, const std::string& what) {
  for (const auto& [name, words] : some) {
    const auto found = all.find(name);
    if (found == all.end()) continue;
    EXPECT_EQ(words, found->second) << what << ", row " << name;
  }
}

// A document of `keys` keys whose last rows are asked; row `i` of it is named i.
Batch document(int keys, int first_row, int rows, int workers) {
  Batch b;
  b.levels = {{{rows}, {names(1000, keys)}}};
  b.row_names = names(first_row, rows);
  b.workers = workers;
  return b;
}
void add_request(Batch& b, int key_name, int keys, int row_name, int rows) {
  b.levels.back().rows.push_back(rows);
  b.levels.back().keys.push_back(names(key_name, keys));
  for (int name : names(row_name, rows)) b.row_names.push_back(name);
}

constexpr int kLength = 1100;  // five chunks, the last ragged
constexpr int kRows = 130;     // the last ones of the document

Bits whole(int window = -1) {
  Batch b = document(kLength, kLength - kRows, kRows, 3);
  b.window_left = window;
  return bits_of(b, kPrefill, 1, true);
}
const Bits& all_rows() {
  static const Bits bits = whole();
  return bits;
}

void check_chunks(uint64_t seed) {
  const Bits& all = all_rows();
  for (const int rows : {1, 63, 64, 65}) {
    for (const int end : {kLength, kLength - kRows + 65}) {
      const Batch part = document(end, end - rows, rows, 4);
      expect_same(bits_of(part, kPrefill, seed), all, std::to_string(rows) + " rows");
      if (rows != 65) continue;
      expect_same(bits_of(part, kWidePrefill, seed), all, "32 rows a warp");
    }
  }
}

void check_decode(uint64_t seed) {
  const Bits& all = all_rows();
  for (const int workers : {1, 2, 7}) {
    for (const int end : {kLength, kLength - 1, 1025, 1024}) {
      expect_same(bits_of(document(end, end - 1, 1, workers), kDecode, seed), all, std::to_string(workers) + " workers, length " + std::to_string(end));
    }
  }
  expect_same(bits_of(document(kLength, kLength - 4, 4, 5), kDecode, seed), all, "four rows");
}

void check_workers(uint64_t seed) {
  const Bits& all = all_rows();
  for (const int workers : {1, 5, 16}) expect_same(bits_of(document(kLength, kLength - kRows, kRows, workers), kPrefill, seed), all, "workers");
}

void check_neighbours(uint64_t seed) {
  const Bits& all = all_rows();
  Batch b = document(kLength, kLength - 1, 1, 5);
  add_request(b, 50000, 700, 50000, 1);
  add_request(b, 60000, 0, 60000, 1);
  add_request(b, 70000, 300, 70000, 3);
  expect_same(bits_of(b, kDecode, seed), all, "neighbours");
}

void check_window(uint64_t seed) {
  for (const int window : {300, 513}) {
    const Bits all = whole(window);
    Batch part = document(kLength, kLength - 64, 64, 2);
    part.window_left = window;
    expect_same(bits_of(part, kPrefill, seed), all, "chunk");
    Batch one = document(kLength, kLength - 1, 1, 3);
    one.window_left = window;
    expect_same(bits_of(one, kDecode, seed), all, "decode");
  }
}

// The same requests, flat and behind one and two levels of shared keys.
void check_shared_or_flat(uint64_t seed) {
  const std::vector<int> own = {5, 300, 0, 77};
  const auto chain = [&](size_t r) {
    std::vector<int> keys = names(1000, 900);
    for (int name : names(static_cast<int>(10000 * (r + 1)), own[r])) keys.push_back(name);
    return keys;
  };
  for (const int rows : {1, 6}) {
    Batch flat, one, two;
    Level requests;
    for (size_t r = 0; r < own.size(); ++r) {
      requests.rows.push_back(rows);
      requests.keys.push_back(chain(r));
    }
    flat.levels = {requests};
    flat.row_names = names(1, rows * static_cast<int>(own.size()));
    const int total = flat.num_rows();
    for (const int shared : {900, 800, 600}) {
      one = flat;
      for (size_t r = 0; r < own.size(); ++r) one.levels[0].keys[r].erase(one.levels[0].keys[r].begin(), one.levels[0].keys[r].begin() + shared);
      one.levels.insert(one.levels.begin(), Level{{total}, {names(1000, shared)}});
      one.workers = 5;
      if (shared != 600) {
        expect_same(bits_of(one, kLevels, seed), bits_of(flat, rows == 1 ? kDecode : kPrefill), "one level");
        continue;
      }
      two = one;
      const std::vector<int> middle = names(1600, 300);
      for (size_t r = 0; r < own.size(); ++r) two.levels[1].keys[r].erase(two.levels[1].keys[r].begin(), two.levels[1].keys[r].begin() + 300);
      two.levels.insert(two.levels.begin() + 1, Level{{2 * rows, 2 * rows}, {middle, middle}});
      for (const int workers : {1, 7}) {
        two.workers = workers;
        expect_same(bits_of(two, kLevels, seed), bits_of(flat, kPrefill), "two levels");
      }
    }
  }
}

// Everything that changes logits and masks stands in the canon too.
void check_variants(uint64_t seed) {
  const Bits all = bits_of(document(kLength, kLength - 20, 20, 3), kVariantsPrefill, seed, true);
  expect_same(bits_of(document(kLength, kLength - 7, 7, 4), kVariantsPrefill, seed), all, "chunk");
  for (const int end : {kLength, kLength - 5}) expect_same(bits_of(document(end, end - 2, 2, 5), kVariantsDecode, seed), all, "decode");
  Batch shared = document(kLength, kLength - 20, 20, 5);
  shared.levels[0].keys[0].erase(shared.levels[0].keys[0].begin(), shared.levels[0].keys[0].begin() + 600);
  shared.levels.insert(shared.levels.begin(), Level{{20}, {names(1000, 600)}});
  expect_same(bits_of(shared, kVariantsLevels, seed, true), all, "levels");
}

void check_long_heads(uint64_t seed) {
  const Bits& all = all_rows();
  expect_same(bits_of(document(kLength, kLength - kRows, kRows, 3), kLongPrefill, seed, true), all, "prefill");
  for (const Kernel& kernel : {kLongPrefill, kLongestDecode}) {
    expect_same(bits_of(document(kLength, kLength - 65, 65, 4), kernel, seed), all, "chunk");
  }
  for (const int end : {kLength, 1025}) {
    const Batch b = document(end, end - 1, 1, 5);
    expect_same(bits_of(b, kLongDecode, seed), all, "decode");
    expect_same(bits_of(b, kLongestDecode, seed), all, "decode by one warp");
  }
  Batch shared = document(kLength, kLength - 20, 20, 5);
  shared.levels[0].keys[0].erase(shared.levels[0].keys[0].begin(), shared.levels[0].keys[0].begin() + 600);
  shared.levels.insert(shared.levels.begin(), Level{{20}, {names(1000, 600)}});
  expect_same(bits_of(shared, kLongLevels, seed, true), all, "levels");
  const Bits turned = bits_of(document(kLength, kLength - 20, 20, 3), kLongRopePrefill, seed, true);
  for (const int end : {kLength, kLength - 5}) expect_same(bits_of(document(end, end - 1, 1, 5), kLongRopeDecode, seed), turned, "RoPE");
}

// Decode, prefill and levels of long heads give the bits of one another, however the keys are cut.
void check_head_size(uint64_t seed, int dim) {
  constexpr int kKeys = 1100, kAsked = 70;  // 140 packed rows are two tiles
  const auto part = [&](int end, int rows, int workers) {
    Batch b = document(end, end - rows, rows, workers);
    b.dim = dim;
    return b;
  };
  const std::string name = "head size " + std::to_string(dim);
  const Bits all = bits_of(part(kKeys, kAsked, 1), kLongPrefill, seed, true);
  expect_same(bits_of(part(kKeys, kAsked, 7), kLongPrefill, seed), all, name + ", workers");
  expect_same(bits_of(part(kKeys - 5, 9, 3), kLongPrefill, seed), all, name + ", chunk");
  for (const int workers : {1, 2, 7}) {
    expect_same(bits_of(part(kKeys, 1, workers), kLongDecode, seed), all, name + ", decode");
    expect_same(bits_of(part(kKeys - 3, 2, workers), kLongestDecode, seed, workers == 2), all, name + ", decode with one warp");
  }
  expect_same(bits_of(part(kKeys, 20, 5), kLongestDecode, seed), all, name + ", three tiles of one warp");
  for (const int shared : {1000, 600}) {
    Batch b = part(kKeys, 20, 5);
    b.levels[0].keys[0].erase(b.levels[0].keys[0].begin(), b.levels[0].keys[0].begin() + shared);
    b.levels.insert(b.levels.begin(), Level{{20}, {names(1000, shared)}});
    expect_same(bits_of(b, kLongLevels, seed), all, name + ", levels");
  }
}
void check_head_sizes(uint64_t seed) {
  check_head_size(seed, 256);
  check_head_size(seed, 136);
}
void check_long_variants(uint64_t seed) {
  Batch whole = document(700, 680, 20, 3), part = document(700, 693, 7, 4), one = document(695, 694, 1, 5);
  whole.dim = part.dim = one.dim = 192;
  const Bits all = bits_of(whole, kLongVariantsPrefill, seed, true);
  expect_same(bits_of(part, kLongVariantsPrefill, seed), all, "chunk");
  expect_same(bits_of(one, kLongVariantsDecode, seed, true), all, "decode");
}

struct InvariantCase {
  const char* name;
  void (*run)(uint64_t seed);
};
const InvariantCase kCases[] = {
    {"chunks of a prompt", check_chunks}, {"decode gives the bits of prefill", check_decode}, {"workers", check_workers}, {"neighbours", check_neighbours},
    {"window", check_window},             {"shared or flat", check_shared_or_flat},           {"variants", check_variants},
    {"long heads", check_long_heads},
    {"head sizes", check_head_sizes},
    {"long heads, variants", check_long_variants},
};
const bool kAdded = add_cases("attend_sm80 canon", kCases, [](const InvariantCase& c, uint64_t seed) { c.run(seed); });

TEST(AttendSm80Invariant, Chunks) { check_chunks(first_seed()); }
TEST(AttendSm80Invariant, DecodeGivesTheBitsOfPrefill) { check_decode(first_seed()); }
TEST(AttendSm80Invariant, Workers) { check_workers(first_seed()); }
TEST(AttendSm80Invariant, Neighbours) { check_neighbours(first_seed()); }
TEST(AttendSm80Invariant, Window) { check_window(first_seed()); }
TEST(AttendSm80Invariant, SharedOrFlat) { check_shared_or_flat(first_seed()); }
TEST(AttendSm80Invariant, Variants) { check_variants(first_seed()); }
TEST(AttendSm80Invariant, LongHeads) { check_long_heads(first_seed()); }
TEST(AttendSm80Invariant, HeadSizes) { check_head_sizes(first_seed()); }
TEST(AttendSm80Invariant, LongHeadsWithVariants) { check_long_variants(first_seed()); }
TEST(AttendSm80Invariant, Seeds) {
  const Bits& all = all_rows();
  for (uint64_t seed = 2; seed <= num_seeds(3); ++seed) {
    expect_same(bits_of(document(kLength, kLength - 2, 2, 6), kDecode, seed), all, "seed");
  }
}

}  // namespace
}  // namespace fulmen::attention_test
