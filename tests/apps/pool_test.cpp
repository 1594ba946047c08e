#include "engine/pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <set>

namespace fulmen::engine {
namespace {

TEST(Pool, EveryItemOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    Pool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (const int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(count));
      for (int repeat = 0; repeat < 50; ++repeat)
        pool.parallel_for(count, [&](int64_t i) { hits[static_cast<size_t>(i)].fetch_add(1); });
      for (const auto& hit : hits) EXPECT_EQ(hit.load(), 50);
    }
  }
}

TEST(Pool, WritesAreVisibleAfterwards) {
  Pool pool(4);
  std::vector<int64_t> values(64);
  for (int round = 0; round < 5000; ++round) {
    pool.parallel_for(64, [&](int64_t i) { values[static_cast<size_t>(i)] = round + i; });
    ASSERT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), 64 * round + 64 * 63 / 2);
  }
}

TEST(Pool, NestedRegionsRunInTheirThread) {
  Pool pool(3);
  std::atomic<int> inner{0};
  pool.parallel_for(8, [&](int64_t) {
    const auto thread = std::this_thread::get_id();
    pool.parallel_for(8, [&](int64_t) {
      EXPECT_EQ(std::this_thread::get_id(), thread);
      inner.fetch_add(1);
    });
  });
  EXPECT_EQ(inner.load(), 64);
}

TEST(Pool, SeveralCallersShareTheThreads) {
  Pool pool(2);
  std::atomic<int> done{0}, inside{0}, most{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&] {
      for (int repeat = 0; repeat < 200; ++repeat)
        pool.parallel_for(4, [&](int64_t) {
          const int now = inside.fetch_add(1) + 1;
          for (int seen = most.load(); seen < now && !most.compare_exchange_weak(seen, now);) {
          }
          inside.fetch_sub(1);
          done.fetch_add(1);
        });
    });
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(done.load(), 4 * 200 * 4);
  EXPECT_LE(most.load(), 5);  // four callers and the pool's one thread
}

}  // namespace
}  // namespace fulmen::engine
