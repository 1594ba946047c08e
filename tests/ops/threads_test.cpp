// The row-wise ops on any number of threads: the same bits; also on an engine's own threads, after fork, from many
// callers, and while contexts come and go.
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <thread>

#include "core/cpus.hpp"
#include "ops/tensors.hpp"

namespace {

using namespace testing_ops;
using Bytes = std::vector<std::vector<unsigned char>>;

// Runs every row-wise op on data that is enough for many threads; returns the bytes of all outputs.
Bytes run_all(fulmen_context* context, int dtype) {
  std::mt19937_64 random(5);
  constexpr int64_t kRows = 37, kWidth = 3001;
  Tensor x(dtype, {kRows, 2 * kWidth}), half(dtype, {kRows, kWidth}), weight(dtype, {kWidth}), residual(dtype, {kRows, kWidth});
  x.fill_normal(random), half.fill_normal(random, 3.0), weight.fill_normal(random), residual.fill_normal(random);
  Bytes out;
  const auto keep = [&](Tensor& t) { out.push_back(t.bytes()); };
  {
    Tensor y(dtype, {kRows, kWidth});
    FULMEN_INIT(fulmen_act_and_mul_args, a);
    a.x = x.view(), a.out = y.view();
    EXPECT_FULMEN_OK(fulmen_act_and_mul(context, &a, nullptr));
    keep(y);
  }
  {
    Tensor y(dtype, {kRows, kWidth});
    FULMEN_INIT(fulmen_rms_norm_args, a);
    a.x = half.view(), a.weight = weight.view(), a.residual = residual.view(), a.out = y.view(), a.eps = 1e-5f;
    EXPECT_FULMEN_OK(fulmen_rms_norm(context, &a, nullptr));
    keep(y), keep(residual);
  }
  {
    Tensor y(dtype, {kRows, kWidth});
    FULMEN_INIT(fulmen_layer_norm_args, a);
    a.x = half.view(), a.weight = weight.view(), a.out = y.view(), a.eps = 1e-5f;
    EXPECT_FULMEN_OK(fulmen_layer_norm(context, &a, nullptr));
    keep(y);
  }
  {
    Tensor q(dtype, {512, 9, 64}), k(dtype, {512, 3, 64}), positions(FULMEN_I32, {512});
    q.fill_normal(random), k.fill_normal(random);
    for (int i = 0; i < 512; ++i) positions.set_integer<int32_t>(i, i * 7919);
    FULMEN_INIT(fulmen_rope_args, a);
    a.q = q.view(), a.k = k.view(), a.positions = positions.view();
    EXPECT_FULMEN_OK(fulmen_rope(context, &a, nullptr));
    keep(q), keep(k);
  }
  {
    Tensor y(FULMEN_F32, {kRows, kWidth});
    FULMEN_INIT(fulmen_softmax_args, a);
    a.logits = half.view(), a.probs = y.view(), a.temperature = 0.7f;
    EXPECT_FULMEN_OK(fulmen_softmax(context, &a, nullptr));
    keep(y);
  }
  {
    Tensor index(FULMEN_I32, {kRows});
    FULMEN_INIT(fulmen_argmax_args, a);
    a.x = half.view(), a.index = index.view();
    EXPECT_FULMEN_OK(fulmen_argmax(context, &a, nullptr));
    keep(index);
  }
  for (const int order : {FULMEN_FILTER_SEQUENTIAL, FULMEN_FILTER_JOINT}) {
    Tensor tokens(FULMEN_I32, {kRows}), logprob(FULMEN_F32, {kRows}), y(FULMEN_F32, {kRows, kWidth});
    FULMEN_INIT(fulmen_sample_args, a);
    a.input = half.view(), a.tokens = tokens.view(), a.logprob = logprob.view(), a.seed = 9;
    a.filter.temperature = 0.8f, a.filter.top_k = 50, a.filter.top_p = 0.9f, a.filter.min_p = 0.01f, a.filter.order = order;
    EXPECT_FULMEN_OK(fulmen_sample(context, &a, nullptr));
    FULMEN_INIT(fulmen_filter_args, f);
    f.input = half.view(), f.output = y.view(), f.filter = a.filter;
    EXPECT_FULMEN_OK(fulmen_filter(context, &f, nullptr));
    keep(tokens), keep(logprob), keep(y);
  }
  {
    Tensor values(dtype, {kRows, 40}), indices(FULMEN_I32, {kRows, 40});
    FULMEN_INIT(fulmen_top_k_args, a);
    a.x = half.view(), a.values = values.view(), a.indices = indices.view();
    EXPECT_FULMEN_OK(fulmen_top_k(context, &a, nullptr));
    keep(values), keep(indices);
  }
  {
    Tensor parts(dtype, {5, 100, 3, 64}), part_lse(FULMEN_F32, {5, 100, 3}), y(dtype, {100, 3, 64}), lse(FULMEN_F32, {100, 3});
    parts.fill_normal(random), part_lse.fill_normal(random);
    FULMEN_INIT(fulmen_merge_states_args, a);
    a.part_o = parts.view(), a.part_lse = part_lse.view(), a.o = y.view(), a.lse = lse.view();
    EXPECT_FULMEN_OK(fulmen_merge_states(context, &a, nullptr));
    keep(y), keep(lse);
  }
  {
    Tensor k(dtype, {900, 2, 64}), cache_k(dtype, {70, 16, 2, 64}), cache_v(dtype, {70, 16, 2, 64}), slots(FULMEN_I64, {900});
    k.fill_normal(random);
    for (int64_t i = 0; i < 900; ++i) slots.set_integer<int64_t>(i, (i * 37) % (70 * 16));
    FULMEN_INIT(fulmen_append_kv_args, a);
    a.k = a.v = k.view(), a.k_cache = cache_k.view(), a.v_cache = cache_v.view(), a.slot_mapping = slots.view();
    EXPECT_FULMEN_OK(fulmen_append_kv(context, &a, nullptr));
    keep(cache_k), keep(cache_v);
  }
  return out;
}

TEST(Threads, SameBitsOnAnyNumber) {
  for (const int dtype : {FULMEN_F32, FULMEN_F16, FULMEN_BF16}) {
    const Context one(1);
    const Bytes first = run_all(one, dtype);
    for (const int threads : {2, 3, 5}) {
      const Context context(threads);
      EXPECT_EQ(run_all(context, dtype), first) << threads << " threads, " << name_of(dtype);
    }
  }
}

// An engine's own loop: backwards, on threads of its own.
TEST(Threads, SameBitsOnTheEnginesOwn) {
  const Context one(1);
  const auto loop = [](void* calls, int64_t count, fulmen_parallel_body body, void* user) {
    ++*static_cast<std::atomic<int>*>(calls);
    std::thread half([&] {
      for (int64_t i = count - 1; i >= count / 2; --i) body(user, i);
    });
    for (int64_t i = count / 2 - 1; i >= 0; --i) body(user, i);
    half.join();
  };
  std::atomic<int> calls{0};
  FULMEN_INIT(fulmen_context_options, options);
  options.num_threads = 4;
  options.parallel_for = loop;
  options.parallel_user = &calls;
  fulmen_context* context = nullptr;
  ASSERT_EQ(fulmen_context_create(&options, &context), FULMEN_OK);
  EXPECT_EQ(run_all(context, FULMEN_F32), run_all(one, FULMEN_F32));
  EXPECT_GT(calls.load(), 5);
  fulmen_context_destroy(context);
}

int exit_code(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(Threads, ForkBeforeAndAfterUse) {
  const Context context(3);
  EXPECT_EQ(exit_code([&] { return run_all(context, FULMEN_BF16).empty() ? 1 : 0; }), 0) << "before this process used it";
  const Bytes here = run_all(context, FULMEN_BF16);
  EXPECT_EQ(exit_code([&] { return run_all(context, FULMEN_BF16) == here ? 0 : 1; }), 0) << "after";
  // A child of a child, and one that makes a larger pool.
  EXPECT_EQ(exit_code([&] {
    if (run_all(context, FULMEN_BF16) != here) return 1;
    const Context larger(6);
    if (run_all(larger, FULMEN_BF16) != here) return 2;
    return exit_code([&] { return run_all(context, FULMEN_BF16) == here ? 0 : 3; });
  }), 0);
  EXPECT_EQ(run_all(context, FULMEN_BF16), here) << "the parent goes on";
}

// One thread forks while others compute: the child must not wait for a lock that nobody holds any more.
TEST(Threads, ForkWhileOthersRun) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer's own locks don't survive a fork beside running threads";
#endif
  const Context context(2);
  const Bytes here = run_all(context, FULMEN_F32);
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) run_all(context, FULMEN_F32);
  });
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(exit_code([&] {
      alarm(60);
      return run_all(context, FULMEN_F32) == here ? 0 : 1;
    }), 0);
  }
  stop = true;
  busy.join();
}

int64_t status_number(const char* key) {
  std::ifstream file("/proc/self/status");
  for (std::string word; file >> word;) {
    int64_t value = 0;
    if (word == key && file >> value) return value;
  }
  return -1;
}

TEST(Threads, CallersAndContextsComeAndGo) {
  const Context lasting(2);
  const Bytes here = run_all(lasting, FULMEN_F16);
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int i = 0; i < 3; ++i) {
        const Context own(2);
        if (run_all(own, FULMEN_F16) != here) ++wrong;
      }
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST(Threads, AThousandContextsLeakNothing) {
  const auto use = [] {
    const Context context(2);
    float x[64] = {}, y[32] = {};
    FULMEN_INIT(fulmen_act_and_mul_args, a);
    a.x = {x, FULMEN_F32, 2, 0, 0, {2, 32}, {32, 1}};
    a.out = {y, FULMEN_F32, 2, 0, 0, {2, 16}, {16, 1}};
    EXPECT_FULMEN_OK(fulmen_act_and_mul(context, &a, nullptr));
  };
  for (int i = 0; i < 50; ++i) use();
  const int64_t threads = status_number("Threads:"), kb = status_number("VmRSS:");
  for (int i = 0; i < 1000; ++i) use();
  EXPECT_EQ(status_number("Threads:"), threads);
  EXPECT_LT(status_number("VmRSS:") - kb, 2048);
}

TEST(Threads, OneCpuIsRespected) {
  cpu_set_t set;
  ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  int cpu = 0;
  while (!CPU_ISSET(cpu, &set)) ++cpu;
  EXPECT_EQ(exit_code([&] {
    unsetenv("FULMEN_NUM_THREADS");
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one) != 0) return 3;
    fulmen_context* context = nullptr;
    if (fulmen_context_create(nullptr, &context) != FULMEN_OK) return 4;
    if (fulmen_context_num_workers(context) != 1) return 5;
    const int64_t before = status_number("Threads:");
    run_all(context, FULMEN_F32);
    return status_number("Threads:") == before ? 0 : 6;
  }), 0);
}

// A tree of /proc and /sys of its own.
class FakeRoot {
 public:
  FakeRoot() {
    char name[] = "/tmp/fulmen-root-XXXXXX";
    root_ = mkdtemp(name);
  }
  ~FakeRoot() { EXPECT_EQ(std::system(("rm -rf " + root_).c_str()), 0); }
  FakeRoot& file(const std::string& path, const std::string& text) {
    EXPECT_EQ(std::system(("mkdir -p $(dirname " + root_ + path + ")").c_str()), 0);
    std::ofstream(root_ + path) << text;
    return *this;
  }
  int cpus() const { return fulmen::cgroup_cpus(root_); }

 private:
  std::string root_;
};

TEST(Threads, ReadsCgroups) {
  EXPECT_GE(FakeRoot().cpus(), 1 << 20) << "no cgroups";
  EXPECT_EQ(FakeRoot().file("/proc/self/cgroup", "0::/a/b\n").file("/sys/fs/cgroup/a/b/cpu.max", "100000 100000\n").cpus(), 1);
  EXPECT_EQ(FakeRoot().file("/proc/self/cgroup", "0::/a/b\n").file("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n").file("/sys/fs/cgroup/a/cpu.max", "150000 100000\n").cpus(), 2)
      << "the group above binds, 1.5 is 2";
  EXPECT_EQ(FakeRoot().file("/proc/self/cgroup", "0::/\n").file("/sys/fs/cgroup/cpu.max", "50000 100000\n").cpus(), 1) << "a container's own root";
  EXPECT_EQ(FakeRoot().file("/proc/self/cgroup", "0::/gone/elsewhere\n").file("/sys/fs/cgroup/cpu.max", "300000 100000").cpus(), 3)
      << "a path of the host that isn't mounted here";
  EXPECT_EQ(FakeRoot().file("/proc/self/cgroup", "4:cpu,cpuacct:/x\n3:cpuset:/y\n").file("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "200000").file("/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000")
                .file("/sys/fs/cgroup/cpu/y/cpu.cfs_quota_us", "100000").file("/sys/fs/cgroup/cpu/y/cpu.cfs_period_us", "100000").cpus(), 2)
      << "v1; cpuset's path is another hierarchy's";
  EXPECT_GE(FakeRoot().file("/proc/self/cgroup", "4:cpu:/x\n").file("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "-1").file("/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000").cpus(), 1 << 20);
  EXPECT_GE(FakeRoot().file("/proc/self/cgroup", "nonsense\n::\n0:\n0::relative\n").file("/sys/fs/cgroup/cpu.max", "garbage").cpus(), 1 << 20);
}

}  // namespace
