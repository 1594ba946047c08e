// Faults that public projects have found in their attention, sampling and reduction kernels, rebuilt from the reports (not from their
// code) as the smallest kernel that has the fault. Each must be caught, by a report or by its results; each with the
// fix must be clean. What the reports call a rare or latent fault is found here on the first run.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "emulator/emulator.hpp"
#include <kernels/math/convert.hpp>
#include <kernels/prelude/device.hpp>
#include <kernels/ptx/cp_async.cuh>
#include <kernels/ptx/ldmatrix.cuh>
#include <kernels/ptx/memory.cuh>
#include <kernels/ptx/mma.cuh>

namespace fulmen {
namespace {

using emulator::Attempt;
using emulator::Buffer;

std::vector<float> counting(size_t n) {
  std::vector<float> v(n);
  std::iota(v.begin(), v.end(), 1.0f);
  return v;
}

struct Args {
  const float* in;
  float* out;
  float* scratch;
  uint32_t* counter;
  const int* table;
  int n;
  bool fixed;
};

// Runs `kernel` on float arrays and compares out with `expected` (NaN: any value).
struct Setup {
  unsigned blocks = 1, threads = 64;
  size_t shared = 4096;
  std::vector<float> in = counting(1024);
  std::vector<int> table = {0};
  size_t out = 64, scratch = 1;
  int n = 0;
  std::vector<float> expected;
};
template <class Kernel> Attempt run(const Setup& s, bool fixed, uint64_t seed, Kernel kernel) {
  auto in = Buffer<float>::input("in", s.in);
  auto out = Buffer<float>::output("out", s.out);
  auto scratch = Buffer<float>::output("scratch", s.scratch);
  auto counter = Buffer<uint32_t>::zeros("counter", 4);
  auto table = Buffer<int>::input("table", s.table);
  const Args args{in.data(), out.data(), scratch.data(), counter.data(), table.data(), s.n, fixed};
  Attempt attempt;
  attempt.report = emulator::launch({.name = "fault", .grid = {s.blocks}, .block = {s.threads}, .shared_bytes = s.shared, .seed = seed}, kernel, args);
  for (size_t i = 0; i < s.expected.size() && attempt.report.clean(); ++i) attempt.right &= out[i] == s.expected[i];
  return attempt;
}

int thread() { return static_cast<int>(threadIdx.x); }

float warp_sum(float x) {
  for (int mask = 16; mask > 0; mask >>= 1) x += __shfl_xor_sync(kFullMask, x, mask);
  return x;
}

struct Fault {
  const char* source;
  const char* what;
  Attempt (*run)(bool fixed, uint64_t seed);
};

const Fault kFaults[] = {
    {"https://github.com/ggml-org/llama.cpp/pull/13438", "scores in shared memory are read by other warps without a barrier",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.expected.assign(64, 64.0f * 65 / 2);
       return run(s, fixed, seed, [](const Args& a) {
         float* kq = dynamic_shared<float>();
         kq[thread()] = a.in[thread()];
         if (a.fixed) __syncthreads();
         float sum = 0;
         for (int i = 0; i < 64; ++i) sum += kq[i];
         a.out[thread()] = sum;
       });
     }},
    {"https://github.com/ggml-org/llama.cpp/pull/27870", "__syncthreads inside the branch of the warps that combine",
     [](bool fixed, uint64_t seed) {
       return run(Setup{}, fixed, seed, [](const Args& a) {
         float* meta = dynamic_shared<float>();
         meta[thread()] = a.in[thread()];
         __syncthreads();
         float sum = 0;
         if (thread() < 32) {
           sum = meta[thread()] + meta[thread() + 32];
           if (!a.fixed) __syncthreads();
           meta[thread()] = sum;
         } else {
           sum = 1;
           if (!a.fixed) __syncthreads();
         }
         if (a.fixed) __syncthreads();
         a.out[thread()] = sum;
       });
     }},
    {"https://github.com/ggml-org/llama.cpp/pull/28358", "lanes past the row write their padding onto the scales behind it",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.threads = 32;
       return run(s, fixed, seed, [](const Args& a) {
         float* quants = dynamic_shared<float>();  // 16 of them, then two scales
         float* scales = quants + 16;
         if (thread() < 16 || !a.fixed) quants[thread()] = thread() < 16 ? a.in[thread()] : 0.0f;
         if (thread() % 16 == 0) scales[thread() / 16] = a.in[thread()];
         __syncwarp();
         a.out[thread()] = scales[thread() / 16];
       });
     }},
    {"https://github.com/karpathy/llm.c/pull/847", "warp 0 clears the partial sums while other warps already store theirs",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.threads = 128;
       s.out = 128;
       return run(s, fixed, seed, [](const Args& a) {
         float* partial = dynamic_shared<float>();
         if (thread() < 32) partial[thread()] = 0;
         if (a.fixed) __syncthreads();
         const float sum = warp_sum(a.in[thread()]);
         if (thread() % 32 == 0) partial[thread() / 32] = sum;
         __syncthreads();
         a.out[thread()] = partial[thread() % 32];
       });
     }},
    {"https://github.com/vllm-project/flash-attention/pull/42", "the last block of keys reads past the end of the block table",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.table = {1, 0, 2};
       s.n = 3 * 16;  // keys; tiles have 64
       return run(s, fixed, seed, [](const Args& a) {
         const int key = thread();
         const int page = a.fixed && key >= a.n ? 0 : a.table[key / 16];
         float* tile = dynamic_shared<float>();
         ptx::cp_async_16(ptx::shared_address(tile + 4 * key), a.in + page * 64 + key % 16 * 4, key >= a.n);
         ptx::cp_async_commit();
         ptx::cp_async_wait<0>();
         a.out[key] = tile[4 * key];
       });
     }},
    {"https://github.com/gittensor-ai-lab/sparkinfer/pull/152", "a block table entry of -1 becomes an address",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.table = {0, -1};
       s.threads = 32;
       return run(s, fixed, seed, [](const Args& a) {
         const int page = a.table[thread() / 16];
         if (a.fixed && page < 0) {
           a.out[thread()] = 0;
           return;
         }
         a.out[thread()] = a.in[static_cast<size_t>(page * 4096) + thread() % 16];
       });
     }},
    {"https://github.com/microsoft/onnxruntime/pull/32391", "a page id past the pool is checked against 0 only",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.table = {0, 99};
       s.threads = 32;
       s.n = 64;  // pages in the pool
       return run(s, fixed, seed, [](const Args& a) {
         const int page = a.table[thread() / 16];
         const bool mapped = page >= 0 && (!a.fixed || page < a.n);
         a.out[thread()] = mapped ? a.in[page * 16 + thread() % 16] : 0.0f;
       });
     }},
    {"https://github.com/flashinfer-ai/flashinfer/pull/1029", "rows of V past the length aren't zeroed: 0 * NaN",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.in.assign(64 * 8, NAN);
       for (int i = 0; i < 40 * 8; ++i) s.in[static_cast<size_t>(i)] = 1;
       s.n = 40;
       s.threads = 8;
       s.out = 8;
       s.expected.assign(8, 40.0f);
       return run(s, fixed, seed, [](const Args& a) {
         float sum = 0;
         for (int key = 0; key < 64; ++key) {
           const float p = key < a.n ? 1.0f : 0.0f;
           const float v = a.fixed && key >= a.n ? 0.0f : a.in[key * 8 + thread()];
           sum += p * v;
         }
         a.out[thread()] = sum;
       });
     }},
    {"https://github.com/Dao-AILab/flash-attention/issues/1395", "rows of K past the length keep what shared memory held",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.n = 5;
       s.threads = 32;
       s.out = 32;
       return run(s, fixed, seed, [](const Args& a) {
         const uint32_t tile = ptx::shared_address(dynamic_shared<float>());
         if (thread() < 8) {
           const bool inside = thread() < a.n;
           if (inside || a.fixed) ptx::cp_async_16(tile + 16 * threadIdx.x, a.in + 4 * thread(), !inside);
         }
         ptx::cp_async_commit();
         ptx::cp_async_wait<0>();
         __syncwarp();
         uint32_t k[1];
         ptx::ldmatrix_x1(k, tile + 16 * (threadIdx.x % 8));
         a.out[thread()] = static_cast<float>(k[0]);
       });
     }},
    {"https://github.com/flashinfer-ai/flashinfer/pull/942", "keys of the page beyond the length take part, NaN and all",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.in.assign(64, NAN);
       for (int i = 0; i < 10; ++i) s.in[static_cast<size_t>(i)] = 1;
       s.n = 10;
       s.threads = 32;
       s.out = 32;
       s.expected.assign(32, 1.0f);
       return run(s, fixed, seed, [](const Args& a) {
         float top = -infinity(), sum = 0;
         for (int key = 0; key < 16; ++key) {
           const float logit = a.fixed && key >= a.n ? -infinity() : a.in[key];
           top = logit > top || logit != logit ? logit : top;
         }
         for (int key = 0; key < 16; ++key) {
           if (!a.fixed || key < a.n) sum += a.in[key] == top ? 1.0f : a.in[key] - a.in[key];
         }
         a.out[thread()] = sum / static_cast<float>(a.n);
       });
     }},
    {"https://github.com/csarofeen/pytorch/pull/2457", "the commit comes after the wait, which then waits for nothing",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.expected = counting(64);
       for (float& x : s.expected) x = 4 * (x - 1) + 1 + 256 + 4 * (x - 1) + 1;
       return run(s, fixed, seed, [](const Args& a) {
         float* ring = dynamic_shared<float>();
         const auto issue = [&](int stage) { ptx::cp_async_16(ptx::shared_address(ring + stage * 256 + 4 * thread()), a.in + stage * 256 + 4 * thread(), false); };
         issue(0);
         ptx::cp_async_commit();
         float sum = 0;
         for (int stage = 0; stage < 2; ++stage) {
           if (stage == 0) issue(1);
           if (a.fixed) ptx::cp_async_commit();
           ptx::cp_async_wait<1>();
           if (!a.fixed) ptx::cp_async_commit();
           sum += ring[stage * 256 + 4 * thread()];
         }
         ptx::cp_async_wait<0>();
         a.out[thread()] = sum;
       });
     }},
    {"https://github.com/NVIDIA/Fuser/pull/2391", "no __threadfence before the semaphore of a split-K sum is released",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.blocks = 3;
       s.scratch = 3 * 64;
       return run(s, fixed, seed, [](const Args& a) {
         // Each block adds to what the block before left.
         const int b = static_cast<int>(blockIdx.x);
         if (thread() == 0) {
           while (ptx::load_acquire_gpu(a.counter) != blockIdx.x) {
           }
         }
         __syncthreads();
         a.scratch[b * 64 + thread()] = a.in[thread()] + (b > 0 ? a.scratch[(b - 1) * 64 + thread()] : 0.0f);
         if (a.fixed) __threadfence();
         __syncthreads();
         if (thread() == 0) {
           if (a.fixed) __threadfence();
           ptx::atomic_add_relaxed_gpu(a.counter, 1);
         }
       });
     }},
    {"https://github.com/pytorch/pytorch/pull/193321", "the last block reads the others' partial results without acquiring them",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.blocks = 4;
       s.scratch = 4 * 64;
       return run(s, fixed, seed, [](const Args& a) {
         a.scratch[blockIdx.x * 64 + threadIdx.x] = a.in[thread()];
         __threadfence();
         __syncthreads();
         uint32_t& ticket = *dynamic_shared<uint32_t>();
         if (thread() == 0) {
           __threadfence();
           ticket = atomicAdd(a.counter, 1u);
           if (a.fixed) __threadfence();
         }
         __syncthreads();
         if (ticket != gridDim.x - 1) return;
         float sum = 0;
         for (unsigned b = 0; b < gridDim.x; ++b) sum += a.scratch[b * 64 + threadIdx.x];
         a.out[thread()] = sum;
       });
     }},
    {"https://github.com/flashinfer-ai/flashinfer/pull/4742", "the tile counter in the loop is raised without the fence that its tail has",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.blocks = 2;
       s.scratch = 128;
       return run(s, fixed, seed, [](const Args& a) {
         if (blockIdx.x == 0) {
           for (int tile = 0; tile < 2; ++tile) {
             a.scratch[tile * 64 + thread()] = a.in[thread()];
             __syncthreads();
             if (thread() == 0) {
               if (a.fixed || tile == 1) __threadfence();
               atomicAdd(a.counter + tile, 1u);
             }
           }
           return;
         }
         float sum = 0;
         for (int tile = 0; tile < 2; ++tile) {
           while (ptx::load_acquire_gpu(a.counter + tile) == 0) {
           }
           sum += a.scratch[tile * 64 + thread()];
         }
         a.out[thread()] = sum;
       });
     }},
    {"https://github.com/vllm-project/vllm/pull/45466", "16-byte stores to cache rows of 46 elements, where only the source was checked",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.threads = 8;
       s.out = 4 * 23;  // rows of 46 16-bit elements
       return run(s, fixed, seed, [](const Args& a) {
         for (int row = 0; row < 4; ++row) {
           float* to = a.out + row * 23;
           if (thread() < 5 && (!a.fixed || reinterpret_cast<uintptr_t>(to) % 16 == 0)) {
             ptx::store_16(to + 4 * thread(), ptx::load_streaming_16(a.in + 4 * thread()));
           } else if (thread() < 5) {
             for (int i = 0; i < 4; ++i) to[4 * thread() + i] = a.in[4 * thread() + i];
           }
         }
       });
     }},
    {"https://github.com/flashinfer-ai/flashinfer/pull/636", "vectors in shared memory begin behind one word per warp",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.n = 7;  // warps
       return run(s, fixed, seed, [](const Args& a) {
         float* vectors = dynamic_shared<float>() + (a.fixed ? round_up(a.n, 4) : a.n);
         ptx::store_16(vectors + 4 * thread(), ptx::load_streaming_16(a.in + 4 * thread()));
         a.out[thread()] = vectors[4 * thread()];
       });
     }},
    {"https://github.com/ggml-org/llama.cpp/pull/17891", "16-byte copies chosen by the shape, though the stride isn't a multiple of 16 bytes",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.n = 65;  // stride of a row
       s.threads = 8;
       return run(s, fixed, seed, [](const Args& a) {
         const uint32_t tile = ptx::shared_address(dynamic_shared<float>());
         for (int row = 0; row < 2; ++row) {
           const float* from = a.in + row * a.n + 4 * thread();
           const uint32_t to = tile + static_cast<uint32_t>(row * 128 + 16 * thread());
           if (!a.fixed) {
             ptx::cp_async_16(to, from, false);
           } else {
             for (int i = 0; i < 4; ++i) ptx::cp_async_zfill<4>(to + 4 * static_cast<uint32_t>(i), from + i, 4);
           }
         }
         ptx::cp_async_commit();
         ptx::cp_async_wait<0>();
         a.out[thread()] = dynamic_shared<float>()[32 + 4 * thread()];
       });
     }},
    {"https://github.com/microsoft/onnxruntime-genai/pull/2526", "a sort's results are written over its workspace while lanes still read it",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.threads = 32;
       s.out = 32;
       return run(s, fixed, seed, [](const Args& a) {
         float* both = dynamic_shared<float>();
         both[thread()] = a.in[thread()];
         __syncwarp();
         const float mine = both[31 - thread()];  // the merge ends on a read
         if (a.fixed) __syncwarp();
         both[thread()] = mine;
         __syncwarp();
         a.out[thread()] = both[thread()];
       });
     }},
    {"https://github.com/flashinfer-ai/flashinfer/pull/3624", "the block reduction's storage is used again in the next turn of the loop",
     [](bool fixed, uint64_t seed) {
       return run(Setup{}, fixed, seed, [](const Args& a) {
         float* storage = dynamic_shared<float>();
         float total = 0;
         for (int turn = 0; turn < 3; ++turn) {
           const float sum = warp_sum(a.in[turn * 64 + thread()]);
           if (thread() % 32 == 0) storage[thread() / 32] = sum;
           __syncthreads();
           total += storage[0] + storage[1];
           if (a.fixed) __syncthreads();
         }
         a.out[thread()] = total;
       });
     }},
    {"https://github.com/flashinfer-ai/flashinfer/issues/3470", "lanes past the vocabulary keep their index, and it can win",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.in.assign(40, -INFINITY);  // no word has any mass left
       s.threads = 32;
       s.out = 1;
       s.n = 40;
       s.expected = {0.0f};
       return run(s, fixed, seed, [](const Args& a) {
         int best = 0;
         float top = -infinity();
         for (int base = 0; base < 64; base += 32) {
           const int i = base + thread();
           const float logit = i < a.n ? a.in[i] : -infinity();
           const int index = a.fixed && i >= a.n ? 0 : i;
           if (a.fixed ? logit > top : logit >= top) top = logit, best = index;
         }
         const auto winner = __reduce_max_sync(kFullMask, best);
         if (thread() == 0) a.out[0] = static_cast<float>(a.fixed && top == -infinity() ? 0 : winner);
       });
     }},
    {"https://github.com/ikawrakow/ik_llama.cpp/pull/2502", "a shuffle between a write to shared memory and its reading is taken for a barrier",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.threads = 32;
       s.out = 32;
       return run(s, fixed, seed, [](const Args& a) {
         float* store = dynamic_shared<float>();
         store[thread()] = a.in[thread()];
         const float sum = warp_sum(a.in[thread()]);
         if (a.fixed) __syncwarp();
         a.out[thread()] = sum + store[(thread() + 1) % 32];
       });
     }},
    {"https://github.com/warpfront/hipfire/pull/575", "the sum of squares is read from a cell that the rotation stage reuses",
     [](bool fixed, uint64_t seed) {
       return run(Setup{}, fixed, seed, [](const Args& a) {
         float* data = dynamic_shared<float>();
         data[thread()] = a.in[thread()] * a.in[thread()];
         __syncthreads();
         for (int step = 32; step > 0; step >>= 1) {
           if (thread() < step) data[thread()] += data[thread() + step];
           __syncthreads();
         }
         const float squares = data[0];
         if (a.fixed) __syncthreads();
         data[thread()] = a.in[thread()] / squares;
         __syncthreads();
         a.out[thread()] = data[thread() ^ 1];
       });
     }},
    {"https://github.com/gittensor-ai-lab/sparkinfer/pull/665", "the next token's partial sums overwrite the normaliser that warps still read",
     [](bool fixed, uint64_t seed) {
       return run(Setup{}, fixed, seed, [](const Args& a) {
         float* partial = dynamic_shared<float>();
         float value = 0;
         for (int token = 0; token < 2; ++token) {
           const float x = a.in[token * 64 + thread()], sum = warp_sum(x * x);
           if (thread() % 32 == 0) partial[thread() / 32] = sum;
           __syncthreads();
           if (thread() == 0) partial[0] = 1.0f / (partial[0] + partial[1]);
           __syncthreads();
           value += x * partial[0];
           if (a.fixed) __syncthreads();
         }
         a.out[thread()] = value;
       });
     }},
    {"https://github.com/intel/torch-xpu-ops/pull/4312", "the next radix pass clears the histogram while the last one is read",
     [](bool fixed, uint64_t seed) {
       return run(Setup{}, fixed, seed, [](const Args& a) {
         auto* histogram = dynamic_shared<uint32_t>();
         uint32_t found = 0;
         for (int pass = 0; pass < 2; ++pass) {
           if (thread() < 16) histogram[thread()] = 0;
           __syncthreads();
           atomicAdd(&histogram[float_bits(a.in[thread()]) >> (20 + 4 * pass) & 15u], 1u);
           __syncthreads();
           for (int bin = 0; bin < 16; ++bin) found = max(found, histogram[bin]);
           if (a.fixed) __syncthreads();
         }
         a.out[thread()] = static_cast<float>(found);
       });
     }},
    {"https://github.com/warpfront/hipfire/pull/264", "partial results are written with one stride and read with another",
     [](bool fixed, uint64_t seed) {
       Setup s;
       s.blocks = 1;
       s.scratch = 4 * 8 * 2;
       s.n = 3;  // tiles of this request; 8 at most
       s.threads = 32;
       return run(s, fixed, seed, [](const Args& a) {
         const int stride = a.fixed ? 8 : a.n, head = thread() / 8, tile = thread() % 8;
         if (tile < a.n) a.scratch[head * stride + tile] = a.in[thread()];
         __syncwarp();
         float sum = 0;
         for (int i = 0; i < a.n; ++i) sum += a.scratch[head * 8 + i];
         a.out[thread()] = sum;
       });
     }},
};

TEST(PublicFaults, EachIsCaught) {
  EXPECT_GE(std::size(kFaults), 20u);
  for (const Fault& fault : kFaults) {
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      const Attempt attempt = fault.run(false, seed);
      EXPECT_TRUE(!attempt.report.clean() || !attempt.right) << "not caught with seed " << seed << ": " << fault.what << "\n" << fault.source;
      if (seed == 1) std::printf("%-18s %s\n", attempt.report.clean() ? "other results" : fault_name(attempt.report.faults[0].kind), fault.what);
    }
  }
}

TEST(PublicFaults, EachFixIsClean) {
  const uint64_t seeds = std::getenv("FULMEN_TEST_FULL") != nullptr ? 50 : 10;
  for (const Fault& fault : kFaults) {
    for (uint64_t seed = 1; seed <= seeds; ++seed) {
      const Attempt attempt = fault.run(true, seed);
      ASSERT_TRUE(attempt.report.clean()) << fault.what << "\n" << attempt.report.text();
      ASSERT_TRUE(attempt.right) << "other results: " << fault.what;
    }
  }
}

}  // namespace
}  // namespace fulmen
