#include "core/pool.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

namespace fulmen {
namespace {

TEST(Pool, RunsEveryItemOnce) {
  for (int threads : {1, 2, 3, 8}) {
    Pool pool(threads);
    for (int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(count));
      pool.parallel_for(count, [&](int64_t i) { hits[static_cast<size_t>(i)]++; });
      for (auto& hit : hits) EXPECT_EQ(hit.load(), 1);
    }
  }
}

// Short jobs of changing size back to back: a thread that is late for one job must not claim from the next.
TEST(Pool, LateThreadsClaimNothing) {
  Pool pool(3);
  for (int round = 0; round < 20000; ++round) {
    const int64_t count = 1 + round % 5;
    std::atomic<int64_t> sum{0};
    pool.parallel_for(count, [&](int64_t i) { sum += i + 1; });
    ASSERT_EQ(sum.load(), count * (count + 1) / 2) << "round " << round;
  }
}

TEST(Pool, CallersShareOnePool) {
  Pool pool(2);
  std::atomic<int> running{0}, most{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        pool.parallel_for(8, [&](int64_t) {
          const int now = ++running;
          int seen = most.load();
          while (now > seen && !most.compare_exchange_weak(seen, now)) {
          }
          --running;
        });
      }
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_LE(most.load(), 2) << "4 callers must not run on more threads than the pool has";
}

TEST(Pool, NestedLoopsRunInline) {
  Pool pool(2);
  std::atomic<int> total{0};
  pool.parallel_for(4, [&](int64_t) { pool.parallel_for(4, [&](int64_t) { ++total; }); });
  EXPECT_EQ(total.load(), 16);
}

TEST(Pool, WorksInAForkedChild) {
  Pool pool(2);
  std::atomic<int> total{0};
  pool.parallel_for(100, [&](int64_t) { ++total; });
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> sum{0};
    pool.parallel_for(100, [&](int64_t) { ++sum; });
    _exit(sum.load() == 100 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(Pool, UsesTheEnginesThreads) {
  int calls = 0;
  auto serial = [](void* user, int64_t count, fulmen_parallel_body body, void* user_body) {
    ++*static_cast<int*>(user);
    for (int64_t i = 0; i < count; ++i) body(user_body, i);
  };
  Pool pool(serial, &calls, 4);
  int sum = 0;
  pool.parallel_for(10, [&](int64_t i) { sum += static_cast<int>(i); });
  EXPECT_EQ(sum, 45);
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace fulmen
