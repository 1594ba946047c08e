// Small kernels, each with one fault that a GPU would mostly hide, and the same kernel without it. The emulator must name the
// first and be silent about the second, whatever the seed.
#include <gtest/gtest.h>

#include <functional>
#include <numeric>

#include "emulator/emulator.hpp"
#include <kernels/prelude/device.hpp>
#include <kernels/ptx/barrier.cuh>
#include <kernels/ptx/cp_async.cuh>
#include <kernels/ptx/griddep.cuh>
#include <kernels/ptx/memory.cuh>

namespace fulmen {
namespace {

using emulator::Buffer;
using emulator::FaultKind;
using emulator::Launch;
using emulator::Report;

constexpr uint64_t kSeeds = 50;

std::vector<float> counting(size_t n) {
  std::vector<float> v(n);
  std::iota(v.begin(), v.end(), 1.0f);
  return v;
}

void expect_clean(const std::function<Report(uint64_t seed)>& run) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const Report report = run(seed);
    ASSERT_TRUE(report.clean()) << report.text();
  }
}

void expect_fault(FaultKind kind, std::initializer_list<const char*> words, const std::function<Report(uint64_t seed)>& run) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const Report report = run(seed);
    ASSERT_TRUE(report.has(kind)) << "expected " << fault_name(kind) << ", got: " << report.text();
    for (const char* word : words) EXPECT_NE(report.text().find(word), std::string::npos) << word << " not in: " << report.text();
    EXPECT_NE(report.text().find("seed " + std::to_string(seed)), std::string::npos) << report.text();
  }
}

// ---- a block reverses an array through shared memory

struct ReverseParams {
  const float* in;
  float* out;
  int n;
};

template <bool kSync> FULMEN_DEVICE void reverse(const ReverseParams& p) {
  float* s = dynamic_shared<float>();
  s[threadIdx.x] = 0;
  __syncthreads();
  s[threadIdx.x] = p.in[threadIdx.x];
  if constexpr (kSync) __syncthreads();
  p.out[threadIdx.x] = s[p.n - 1 - threadIdx.x];
}

template <bool kSync> Report run_reverse(uint64_t seed, unsigned n = 128) {
  auto in = Buffer<float>::input("in", counting(n));
  auto out = Buffer<float>::output("out", n);
  const ReverseParams params{in.data(), out.data(), static_cast<int>(n)};
  Report report = emulator::launch({.name = "reverse", .grid = {1}, .block = {n}, .shared_bytes = n * 4, .seed = seed},
                                   [](const ReverseParams& p) { reverse<kSync>(p); }, params);
  if (report.clean()) {
    for (unsigned i = 0; i < n; ++i) EXPECT_EQ(out[i], static_cast<float>(n - i));
  }
  return report;
}

TEST(Faults, MissingSyncthreads) {
  expect_clean([](uint64_t seed) { return run_reverse<true>(seed); });
  expect_fault(FaultKind::race, {"of 4 bytes at shared memory +", "is not ordered after the", "which was at tests/kernels/faults_test.cpp", "kernel reverse"},
               [](uint64_t seed) { return run_reverse<false>(seed); });
}

// ---- lanes exchange through shared memory

template <bool kSync> Report run_lane_exchange(uint64_t seed) {
  auto out = Buffer<int>::output("out", 32);
  return emulator::launch({.name = "lanes", .grid = {1}, .block = {32}, .shared_bytes = 128, .seed = seed},
                          [](int* o) {
                            int* s = dynamic_shared<int>();
                            s[threadIdx.x] = static_cast<int>(threadIdx.x);
                            if constexpr (kSync) __syncwarp();
                            o[threadIdx.x] = s[threadIdx.x ^ 1];
                          },
                          out.data());
}

TEST(Faults, MissingSyncwarp) {
  expect_clean(run_lane_exchange<true>);
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) EXPECT_FALSE(run_lane_exchange<false>(seed).clean());
}

// A shuffle makes lanes wait for one another, but orders no memory.
TEST(Faults, ShuffleOrdersNoMemory) {
  expect_fault(FaultKind::race, {"shared memory", "read of 4 bytes", "the write by"}, [](uint64_t seed) {
    auto out = Buffer<int>::output("out", 32);
    return emulator::launch({.name = "shuffle", .grid = {1}, .block = {32}, .shared_bytes = 128, .seed = seed},
                            [](int* o) {
                              int* s = dynamic_shared<int>();
                              s[threadIdx.x] = 1;
                              const int x = __shfl_xor_sync(kFullMask, 1, 1);
                              o[threadIdx.x] = s[threadIdx.x ^ 1] + x;
                            },
                            out.data());
  });
}

// ---- bounds, alignment, initialisation

TEST(Faults, OutOfBounds) {
  auto run = [](uint64_t seed, int limit) {
    auto in = Buffer<float>::input("in", counting(100));
    auto out = Buffer<float>::output("out", 100);
    return emulator::launch({.name = "copy", .grid = {1}, .block = {128}, .seed = seed},
                            [](const float* x, float* y, int n) {
                              if (static_cast<int>(threadIdx.x) < n) y[threadIdx.x] = x[threadIdx.x];
                            },
                            static_cast<const float*>(in.data()), out.data(), limit);
  };
  expect_clean([&](uint64_t seed) { return run(seed, 100); });
  expect_fault(FaultKind::out_of_bounds, {"'in'", "0 bytes past its end (400 bytes long)", "thread (100,0,0)", "faults_test.cpp"},
               [&](uint64_t seed) { return run(seed, 101); });
}

TEST(Faults, SharedOutOfBounds) {
  expect_fault(FaultKind::out_of_bounds, {"shared memory +128", "128 bytes of dynamic shared memory"}, [](uint64_t seed) {
    return emulator::launch({.name = "shared", .grid = {1}, .block = {33}, .shared_bytes = 128, .seed = seed},
                            [](int) { dynamic_shared<int>()[threadIdx.x] = 0; }, 0);
  });
}

TEST(Faults, WildPointerAndInputWritten) {
  auto in = Buffer<float>::input("in", counting(4));
  int host = 0;
  expect_fault(FaultKind::out_of_bounds, {"no registered buffer"}, [&](uint64_t seed) {
    return emulator::launch({.grid = {1}, .block = {1}, .seed = seed}, [](int* p) { *p = 1; }, &host);
  });
  expect_fault(FaultKind::read_only, {"it is an input"}, [&](uint64_t seed) {
    return emulator::launch({.grid = {1}, .block = {1}, .seed = seed}, [](float* p) { p[1] = 1; }, in.data());
  });
}

TEST(Faults, Misaligned) {
  auto run = [](uint64_t seed, int offset) {
    auto in = Buffer<float>::input("in", counting(64));
    auto out = Buffer<float>::output("out", 64);
    return emulator::launch({.name = "vector", .grid = {1}, .block = {8}, .seed = seed},
                            [](const float* x, float* y, int shift) {
                              *reinterpret_cast<float4*>(y + 4 * threadIdx.x) =
                                  *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + shift);
                            },
                            static_cast<const float*>(in.data()), out.data(), offset);
  };
  expect_clean([&](uint64_t seed) { return run(seed, 4); });
  expect_fault(FaultKind::misaligned, {"read of 16 bytes at 'in'", "not a multiple of 16"}, [&](uint64_t seed) { return run(seed, 1); });
}

TEST(Faults, UninitialisedSharedAndOutput) {
  expect_fault(FaultKind::uninitialised, {"never written", "shared memory +0"}, [](uint64_t seed) {
    auto out = Buffer<int>::output("out", 1);
    return emulator::launch({.grid = {1}, .block = {1}, .shared_bytes = 4, .seed = seed}, [](int* o) { *o = *dynamic_shared<int>(); },
                            out.data());
  });
  expect_fault(FaultKind::uninitialised, {"'out' +4"}, [](uint64_t seed) {
    auto out = Buffer<int>::output("out", 2);
    return emulator::launch({.grid = {1}, .block = {1}, .seed = seed}, [](int* o) { o[1] += 1; }, out.data());
  });
}

// ---- divergence and deadlock

TEST(Faults, DivergentCollective) {
  auto run = [](uint64_t seed, bool divergent) {
    auto out = Buffer<int>::output("out", 32);
    return emulator::launch({.name = "vote", .grid = {1}, .block = {32}, .seed = seed},
                            [](int* o, bool skip) {
                              int x = static_cast<int>(threadIdx.x);
                              if (!skip || threadIdx.x != 7) x = __shfl_xor_sync(kFullMask, x, 1);
                              __syncwarp();
                              o[threadIdx.x] = x;
                            },
                            out.data(), divergent);
  };
  expect_clean([&](uint64_t seed) { return run(seed, false); });
  expect_fault(FaultKind::divergent, {"__syncwarp", "__shfl_xor_sync", "faults_test.cpp"}, [&](uint64_t seed) { return run(seed, true); });
}

TEST(Faults, DivergentBarrier) {
  expect_fault(FaultKind::divergent, {"divergent barrier", "at another place"}, [](uint64_t seed) {
    auto out = Buffer<int>::output("out", 64);
    return emulator::launch({.name = "barrier", .grid = {1}, .block = {64}, .seed = seed},
                            [](int* o) {
                              if (threadIdx.x < 32) {
                                __syncthreads();
                                o[threadIdx.x] = 1;
                              } else {
                                o[threadIdx.x] = 2;
                                __syncthreads();
                              }
                            },
                            out.data());
  });
  // Half of a warp leaves its other half alone.
  expect_fault(FaultKind::divergent, {"__syncthreads", "__syncwarp", "faults_test.cpp"}, [](uint64_t seed) {
    return emulator::launch({.name = "half", .grid = {1}, .block = {64}, .seed = seed},
                            [](int) {
                              if (threadIdx.x % 32 < 16) __syncthreads();
                              __syncwarp();
                            },
                            0);
  });
}

TEST(Faults, Deadlock) {
  auto run = [](uint64_t seed, int threads) {
    return emulator::launch({.name = "named", .grid = {1}, .block = {96}, .seed = seed},
                            [](int n) {
                              if (threadIdx.x < 64) ptx::barrier_sync(1, n);
                            },
                            threads);
  };
  expect_clean([&](uint64_t seed) { return run(seed, 64); });
  expect_fault(FaultKind::deadlock, {"barrier 1: 64 of 96 threads have arrived", "bar.sync (barrier 1)", "faults_test.cpp"},
               [&](uint64_t seed) { return run(seed, 96); });
}

TEST(Faults, SignalNeverGiven) {
  expect_fault(FaultKind::deadlock, {"spin"}, [](uint64_t seed) {
    auto flag = Buffer<uint32_t>::zeros("flag", 1);
    return emulator::launch({.name = "spin", .grid = {1}, .block = {1}, .seed = seed},
                            [](uint32_t* f) {
                              while (ptx::load_acquire_gpu(f) == 0) {
                              }
                            },
                            flag.data());
  });
}

// ---- cp.async

template <int kPending, bool kSync, bool kCommit = true> Report run_async(uint64_t seed) {
  constexpr unsigned kThreads = 64;
  auto in = Buffer<float>::input("in", counting(4 * kThreads));
  auto out = Buffer<float>::output("out", 4 * kThreads);
  Report report = emulator::launch(
      {.name = "async", .grid = {1}, .block = {kThreads}, .shared_bytes = 16 * kThreads, .seed = seed},
      [](const float* x, float* y) {
        float* s = dynamic_shared<float>();
        const int mine = 4 * static_cast<int>(threadIdx.x);
        ptx::cp_async_16(ptx::shared_address(s + mine), x + mine, false);
        if constexpr (kCommit) ptx::cp_async_commit();
        if constexpr (kPending >= 0) ptx::cp_async_wait<kPending>();
        if constexpr (kSync) __syncthreads();
        const int other = 4 * static_cast<int>(blockDim.x - 1 - threadIdx.x);
        for (int i = 0; i < 4; ++i) y[mine + i] = s[other + i];
      },
      static_cast<const float*>(in.data()), out.data());
  if (report.clean()) {
    for (unsigned i = 0; i < 4 * kThreads; ++i) EXPECT_EQ(out[i], static_cast<float>(4 * (kThreads - 1 - i / 4) + i % 4 + 1));
  }
  return report;
}

TEST(Faults, AsyncCopies) {
  expect_clean(run_async<0, true>);
  expect_fault(FaultKind::pending_copy, {"cp.async", "in flight"}, run_async<1, true>);        // waits for one too few
  expect_fault(FaultKind::pending_copy, {"cp.async", "in flight"}, run_async<-1, true>);       // never waits
  expect_fault(FaultKind::pending_copy, {"in flight"}, run_async<0, true, false>);             // not committed
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) EXPECT_FALSE((run_async<0, false>(seed).clean()));  // own wait is not the others'
}

TEST(Faults, AsyncCopyInFlightAtExit) {
  expect_fault(FaultKind::in_flight_at_exit, {"exits with 1 cp.async in flight"}, [](uint64_t seed) {
    auto in = Buffer<float>::input("in", counting(4));
    return emulator::launch({.grid = {1}, .block = {1}, .shared_bytes = 16, .seed = seed},
                            [](const float* x) {
                              ptx::cp_async_16(ptx::shared_address(dynamic_shared<float>()), x, false);
                              ptx::cp_async_commit();
                            },
                            static_cast<const float*>(in.data()));
  });
}

// A stage is refilled while others may still read it.
TEST(Faults, StageReusedTooEarly) {
  auto run = [](uint64_t seed, bool sync) {
    auto in = Buffer<float>::input("in", counting(512));
    auto out = Buffer<float>::output("out", 64);
    return emulator::launch(
        {.name = "ring", .grid = {1}, .block = {64}, .shared_bytes = 1024, .seed = seed},
        [](const float* x, float* y, bool barrier) {
          float* s = dynamic_shared<float>();
          const int mine = 4 * static_cast<int>(threadIdx.x);
          float sum = 0;
          for (int round = 0; round < 2; ++round) {
            ptx::cp_async_16(ptx::shared_address(s + mine), x + 256 * round + mine, false);
            ptx::cp_async_commit();
            ptx::cp_async_wait<0>();
            __syncthreads();
            sum += s[255 - mine];
            if (barrier) __syncthreads();
          }
          y[threadIdx.x] = sum;
        },
        static_cast<const float*>(in.data()), out.data(), sync);
  };
  expect_clean([&](uint64_t seed) { return run(seed, true); });
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const Report report = run(seed, false);
    EXPECT_TRUE(report.has(FaultKind::race) || report.has(FaultKind::pending_copy)) << report.text();
  }
}

// ---- blocks hand results to the last of them

enum class Handover { fence, acq_rel, relaxed, block_fence, no_barrier };

template <Handover kHow> Report run_last_block(uint64_t seed) {
  constexpr unsigned kBlocks = 6, kThreads = 64;
  auto partial = Buffer<float>::output("partial", kBlocks * kThreads);
  auto counter = Buffer<uint32_t>::zeros("counter", 1);
  auto out = Buffer<float>::output("out", kThreads);
  Report report = emulator::launch(
      {.name = "last block", .grid = {kBlocks}, .block = {kThreads}, .shared_bytes = 4, .seed = seed, .resident_blocks = 3},
      [](float* parts, uint32_t* count, float* y) {
        parts[blockIdx.x * blockDim.x + threadIdx.x] = static_cast<float>(blockIdx.x + threadIdx.x);
        if constexpr (kHow != Handover::no_barrier) __syncthreads();
        uint32_t& ticket = *dynamic_shared<uint32_t>();
        if (threadIdx.x == 0) {
          if constexpr (kHow == Handover::acq_rel || kHow == Handover::no_barrier) {
            ticket = ptx::atomic_add_acq_rel_gpu(count, 1);
          } else if constexpr (kHow == Handover::relaxed) {
            ticket = ptx::atomic_add_relaxed_gpu(count, 1);
          } else {
            kHow == Handover::fence ? __threadfence() : __threadfence_block();
            ticket = atomicAdd(count, 1u);
            kHow == Handover::fence ? __threadfence() : __threadfence_block();
          }
        }
        __syncthreads();
        if (ticket != gridDim.x - 1) return;
        float sum = 0;
        for (unsigned b = 0; b < gridDim.x; ++b) sum += parts[b * blockDim.x + threadIdx.x];
        y[threadIdx.x] = sum;
      },
      partial.data(), counter.data(), out.data());
  if (report.clean()) {
    for (unsigned i = 0; i < kThreads; ++i) EXPECT_EQ(out[i], static_cast<float>(kBlocks * i + kBlocks * (kBlocks - 1) / 2));
  }
  return report;
}

TEST(Faults, LastBlockCounter) {
  expect_clean(run_last_block<Handover::fence>);
  expect_clean(run_last_block<Handover::acq_rel>);
  expect_fault(FaultKind::race, {"'partial'", "read", "not ordered after the write"}, run_last_block<Handover::relaxed>);
  expect_fault(FaultKind::race, {"'partial'"}, run_last_block<Handover::block_fence>);
  expect_fault(FaultKind::race, {"'partial'"}, run_last_block<Handover::no_barrier>);
}

// ---- overlapped launches

TEST(Faults, TouchedBeforeTheKernelBeforeHasEnded) {
  auto run = [](uint64_t seed, bool wait) {
    auto in = Buffer<float>::input("in", counting(32));
    auto out = Buffer<float>::output("out", 32);
    return emulator::launch({.name = "dependent", .grid = {1}, .block = {32}, .seed = seed, .overlapped = true},
                            [](const float* x, float* y, bool w) {
                              if (w) ptx::griddep_wait();
                              y[threadIdx.x] = x[threadIdx.x];
                            },
                            static_cast<const float*>(in.data()), out.data(), wait);
  };
  expect_clean([&](uint64_t seed) { return run(seed, true); });
  expect_fault(FaultKind::before_wait, {"griddepcontrol.wait", "'in'"}, [&](uint64_t seed) { return run(seed, false); });
}

TEST(Faults, LimitsOfTheLaunch) {
  const Report report = emulator::launch({.name = "big", .grid = {1}, .block = {2048}}, [](int) {}, 0);
  EXPECT_TRUE(report.has(FaultKind::limit)) << report.text();
  EXPECT_TRUE(emulator::launch({.grid = {1}, .block = {32}, .shared_bytes = 300000}, [](int) {}, 0).has(FaultKind::limit));
}

TEST(Faults, SameSeedSameReport) {
  const Report one = run_reverse<false>(7), two = run_reverse<false>(7);
  EXPECT_EQ(one.text(), two.text());
}

}  // namespace
}  // namespace fulmen
