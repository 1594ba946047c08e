// The same words on the CPU and in the emulator over many rows: every row with filters, temperature and seed of its own, and many
// whose boundary falls on ties or exactly on a sum of masses. FULMEN_SAMPLE_ROWS sets the number of rows of 256 words (a thousandth of it of
// 128,256 words); scripts/test_full.sh asks for a million, a quarter at a time (FULMEN_TEST_SEED).
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "core/pool.hpp"
#include "cpu/ops.hpp"
#include "emulator/emulator.hpp"
#include "kernels/seeds.hpp"
#include <kernels/sampling/sample.cuh>

namespace fulmen {
namespace {

using emulator::Buffer;

constexpr SamplingConfig kOneWarp{.dtype = DType::f32, .vector_bytes = 16, .threads = 32, .cluster = 1, .held_bytes = 1024};
constexpr SamplingConfig kCluster{.dtype = DType::f32, .vector_bytes = 16, .threads = 32, .cluster = 2, .held_bytes = 512};
constexpr SamplingConfig kGathering{.dtype = DType::f32, .vector_bytes = 16, .threads = 64, .cluster = 2, .held_bytes = 8192};
constexpr SamplingConfig kGatheringBf16{.dtype = DType::bf16, .vector_bytes = 16, .threads = 64, .cluster = 2, .held_bytes = 4096};
constexpr SamplingConfig kLarge{.dtype = DType::f32, .vector_bytes = 16, .threads = 64, .cluster = 8, .held_bytes = 66432};
template <SamplingConfig kC> __attribute__((noinline)) void sample_kernel(const SampleParams& p) { sample<kC>(p); }

int64_t rows_wanted() {
  const char* text = std::getenv("FULMEN_SAMPLE_ROWS");
  return text != nullptr ? std::atoll(text) : 2000;
}

// Another FULMEN_TEST_SEED, other rows.
uint64_t seed_of(int64_t batch) { return first_seed() * 1'000'000 + static_cast<uint64_t>(batch); }

struct Batch {
  std::vector<float> logits, temperatures, top_ps, min_ps;
  std::vector<int32_t> top_ks;
  std::vector<uint64_t> seeds;

  Batch(int64_t rows, int32_t vocab, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    const auto one_of = [&](std::initializer_list<float> values) { return values.begin()[random() % values.size()]; };
    for (int64_t r = 0; r < rows; ++r) {
      const uint64_t kind = random() % 8;
      const float scale = one_of({0.1f, 1.0f, 3.0f, 8.0f, 40.0f});
      for (int32_t i = 0; i < vocab; ++i) {
        float v = scale * normal(random);
        if (kind == 1) v = std::floor(v);                                   // ties
        if (kind == 2) v = 1.0f;                                            // nothing else
        if (kind == 3) v = random() % 16 == 0 ? 20.0f : v;                  // ties at the top
        if (kind == 4) v = random() % 3 == 0 ? -INFINITY : v;
        if (kind == 5) v = static_cast<float>(random() % 2) * 0.69314718f;  // weights of 1 and about 1/2
        if (kind == 6) v = std::ldexp(v, -20);                              // one bin
        logits.push_back(v);
      }
      temperatures.push_back(one_of({1.0f, 1.0f, 0.7f, 1.5f, 0.05f, 0.0f}));
      top_ps.push_back(one_of({1.0f, 0.9f, 0.5f, 0.25f, 0.999f, 0.0f, static_cast<float>(random() % 1000) / 1000.0f}));
      min_ps.push_back(one_of({0.0f, 0.0f, 0.05f, 0.5f, 1.0f}));
      const int32_t ks[] = {0, 0, 1, 2, 50, vocab / 2, vocab - 1, static_cast<int32_t>(random() % static_cast<uint64_t>(vocab))};
      top_ks.push_back(ks[random() % 8]);
      seeds.push_back(random());
    }
  }
};

template <SamplingConfig kC>
void compare(int64_t rows, int32_t vocab, bool joint, uint64_t seed) {
  using T = storage_t<kC.dtype>;
  const Batch batch(rows, vocab, seed);
  std::vector<T> logits;
  for (const float v : batch.logits) logits.push_back(from_float<T>(v));
  auto input = Buffer<T>::input("input", logits);
  auto temperatures = Buffer<float>::input("temperatures", batch.temperatures);
  auto top_ps = Buffer<float>::input("top_ps", batch.top_ps), min_ps = Buffer<float>::input("min_ps", batch.min_ps);
  auto top_ks = Buffer<int32_t>::input("top_ks", batch.top_ks);
  auto seeds = Buffer<uint64_t>::input("seeds", batch.seeds);
  auto tokens = Buffer<int32_t>::output("tokens", static_cast<size_t>(rows));
  SampleParams p{};
  p.input = input.data(), p.tokens = tokens.data(), p.seeds = seeds.data();
  p.filter = {temperatures.data(), top_ks.data(), top_ps.data(), min_ps.data(), 1.0f, 0, 1.0f, 0.0f, joint};
  p.offset = 11, p.input_stride = vocab, p.num_input_rows = p.num_rows = rows, p.vocab = vocab, p.dtype = kC.dtype;
  const auto report = emulator::launch({.name = "sample", .grid = {static_cast<unsigned>(rows) * kC.cluster}, .block = {kC.threads},
                                        .shared_bytes = static_cast<size_t>(kC.smem_bytes()), .seed = seed, .cluster = kC.cluster},
                                       sample_kernel<kC>, p);
  ASSERT_TRUE(report.clean()) << report.text();
  std::vector<int32_t> expected(static_cast<size_t>(rows));
  p.tokens = expected.data();
  cpu::sample(p, Pool(1));
  for (size_t r = 0; r < expected.size(); ++r) {
    ASSERT_EQ(tokens[r], expected[r]) << "row " << r << " of batch " << seed << ", " << vocab << " words: temperature " << batch.temperatures[r] << ", top-k "
                                      << batch.top_ks[r] << ", top-p " << batch.top_ps[r] << ", min-p " << batch.min_ps[r] << (joint ? ", joint" : "");
  }
}

TEST(SampleRows, SmallVocabulary) {
  constexpr int64_t kBatch = 250;
  const int64_t batches = (rows_wanted() + kBatch - 1) / kBatch;
  for (int64_t b = 0; b < batches && !testing::Test::HasFatalFailure(); ++b) {
    const uint64_t seed = seed_of(b);
    if (b % 4 == 3) {
      compare<kCluster>(kBatch, 256, b % 8 == 3, seed);
    } else {
      compare<kOneWarp>(kBatch, 256, b % 2 == 1, seed);
    }
  }
  std::printf("%lld rows of 256 words\n", static_cast<long long>(batches * kBatch));
}

// Long enough for the words of a prefix to be gathered, and for guesses that miss its end.
TEST(SampleRows, MiddleVocabulary) {
  const int64_t rows = rows_wanted() / 20;
  compare<kGathering>(rows, 4096, false, 31);
  compare<kGathering>(rows, 4092, true, 32);
  compare<kGatheringBf16>(rows, 4088, false, 33);
  std::printf("%lld rows of about 4096 words\n", static_cast<long long>(3 * rows));
}

TEST(SampleRows, LargeVocabulary) {
  const int64_t rows = rows_wanted() / 1000;
  for (int64_t r = 0; r < rows && !testing::Test::HasFatalFailure(); ++r) compare<kLarge>(1, 128256, r % 2 == 1, seed_of(500'000 + r));
  std::printf("%lld rows of 128,256 words\n", static_cast<long long>(rows));
}

}  // namespace
}  // namespace fulmen
