// The faults of public_faults.cuh in the emulator: each must be caught, by a report or by its results; each with the fix must be clean.
// What the reports call a rare or latent fault is found here on the first run. tests/gpu/public_faults.py reads this table.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "emulator/emulator.hpp"
#include "kernels/public_faults.cuh"

namespace fulmen {
namespace {

using emulator::Attempt;
using emulator::Buffer;

std::vector<float> counting(size_t n) {
  std::vector<float> v(n);
  std::iota(v.begin(), v.end(), 1.0f);
  return v;
}

std::vector<float> ones(size_t some, size_t all, float rest) {
  std::vector<float> v(all, rest);
  std::fill_n(v.begin(), some, 1.0f);
  return v;
}

// What two stages of 256 counted words add up to, four words a thread.
std::vector<float> two_stages() {
  std::vector<float> v(64);
  for (size_t i = 0; i < v.size(); ++i) v[i] = 8.0f * static_cast<float>(i) + 258.0f;
  return v;
}

struct Setup {
  unsigned blocks = 1, threads = 64;
  std::vector<float> in = counting(1024);
  std::vector<int> table = {0};
  size_t out = 64, scratch = 1;
  int n = 0;
  std::vector<float> expected = {};  // empty: any values
};

struct Fault {
  const char* source;
  const char* what;
  void (*kernel)(const faults::Args&);
  Setup setup;
};

const Fault kFaults[] = {
    {"https://github.com/ggml-org/llama.cpp/pull/13438",
     "scores in shared memory are read by other warps without a barrier", faults::llama_cpp_13438, {.expected = std::vector<float>(64, 64.0f * 65 / 2)}},
    {"https://github.com/ggml-org/llama.cpp/pull/27870",
     "__syncthreads inside the branch of the warps that combine", faults::llama_cpp_27870, {}},
    {"https://github.com/ggml-org/llama.cpp/pull/28358",
     "lanes past the row write their padding onto the scales behind it", faults::llama_cpp_28358, {.threads = 32}},
    {"https://github.com/karpathy/llm.c/pull/847",
     "warp 0 clears the partial sums while other warps already store theirs", faults::llm_c_847, {.threads = 128, .out = 128}},
    {"https://github.com/vllm-project/flash-attention/pull/42",
     "the last block of keys reads past the end of the block table", faults::flash_attention_42, {.table = {1, 0, 2}, .n = 48}},
    {"https://github.com/gittensor-ai-lab/sparkinfer/pull/152",
     "a block table entry of -1 becomes an address", faults::sparkinfer_152, {.threads = 32, .table = {0, -1}}},
    {"https://github.com/microsoft/onnxruntime/pull/32391",
     "a page id past the pool is checked against 0 only", faults::onnxruntime_32391, {.threads = 32, .table = {0, 99}, .n = 64}},
    {"https://github.com/flashinfer-ai/flashinfer/pull/1029",
     "rows of V past the length aren't zeroed: 0 * NaN", faults::flashinfer_1029, {.threads = 8, .in = ones(320, 512, NAN), .out = 8, .n = 40, .expected = std::vector<float>(8, 40.0f)}},
    {"https://github.com/Dao-AILab/flash-attention/issues/1395",
     "rows of K past the length keep what shared memory held", faults::flash_attention_1395, {.threads = 32, .out = 32, .n = 5}},
    {"https://github.com/flashinfer-ai/flashinfer/pull/942",
     "keys of the page beyond the length take part, NaN and all", faults::flashinfer_942, {.threads = 32, .in = ones(10, 64, NAN), .out = 32, .n = 10, .expected = std::vector<float>(32, 1.0f)}},
    {"https://github.com/csarofeen/pytorch/pull/2457",
     "the commit comes after the wait, which then waits for nothing", faults::pytorch_2457, {.expected = two_stages()}},
    {"https://github.com/NVIDIA/Fuser/pull/2391",
     "no __threadfence before the semaphore of a split-K sum is released", faults::fuser_2391, {.blocks = 3, .scratch = 192}},
    {"https://github.com/pytorch/pytorch/pull/193321",
     "the last block reads the others' partial results without acquiring them", faults::pytorch_193321, {.blocks = 4, .scratch = 256}},
    {"https://github.com/flashinfer-ai/flashinfer/pull/4742",
     "the tile counter in the loop is raised without the fence that its tail has", faults::flashinfer_4742, {.blocks = 2, .scratch = 128}},
    {"https://github.com/vllm-project/vllm/pull/45466",
     "16-byte stores to cache rows of 46 elements, where only the source was checked", faults::vllm_45466, {.threads = 8, .out = 92}},
    {"https://github.com/flashinfer-ai/flashinfer/pull/636",
     "vectors in shared memory begin behind one word per warp", faults::flashinfer_636, {.n = 7}},
    {"https://github.com/ggml-org/llama.cpp/pull/17891",
     "16-byte copies chosen by the shape, though the stride isn't a multiple of 16 bytes", faults::llama_cpp_17891, {.threads = 8, .n = 65}},
    {"https://github.com/microsoft/onnxruntime-genai/pull/2526",
     "a sort's results are written over its workspace while lanes still read it", faults::onnxruntime_genai_2526, {.threads = 32, .out = 32}},
    {"https://github.com/flashinfer-ai/flashinfer/pull/3624",
     "the block reduction's storage is used again in the next turn of the loop", faults::flashinfer_3624, {}},
    {"https://github.com/flashinfer-ai/flashinfer/issues/3470",
     "lanes past the vocabulary keep their index, and it can win", faults::flashinfer_3470, {.threads = 32, .in = ones(0, 40, -INFINITY), .out = 1, .n = 40, .expected = {0.0f}}},
    {"https://github.com/ikawrakow/ik_llama.cpp/pull/2502",
     "a shuffle between a write to shared memory and its reading is taken for a barrier", faults::ik_llama_cpp_2502, {.threads = 32, .out = 32}},
    {"https://github.com/warpfront/hipfire/pull/575",
     "the sum of squares is read from a cell that the rotation stage reuses", faults::hipfire_575, {}},
    {"https://github.com/gittensor-ai-lab/sparkinfer/pull/665",
     "the next token's partial sums overwrite the normaliser that warps still read", faults::sparkinfer_665, {}},
    {"https://github.com/intel/torch-xpu-ops/pull/4312",
     "the next radix pass clears the histogram while the last one is read", faults::torch_xpu_ops_4312, {}},
    {"https://github.com/warpfront/hipfire/pull/264",
     "partial results are written with one stride and read with another", faults::hipfire_264, {.threads = 32, .scratch = 64, .n = 3}},
};

Attempt run(const Fault& fault, bool fixed, uint64_t seed) {
  const Setup& s = fault.setup;
  auto in = Buffer<float>::input("in", s.in);
  auto out = Buffer<float>::output("out", s.out);
  auto scratch = Buffer<float>::output("scratch", s.scratch);
  auto counter = Buffer<uint32_t>::zeros("counter", 4);
  auto table = Buffer<int>::input("table", s.table);
  const faults::Args args{in.data(), out.data(), scratch.data(), counter.data(), table.data(), s.n, fixed};
  Attempt attempt;
  attempt.report = emulator::launch({.name = "fault", .grid = {s.blocks}, .block = {s.threads}, .shared_bytes = 4096, .seed = seed}, fault.kernel, args);
  for (size_t i = 0; i < s.expected.size() && attempt.report.clean(); ++i) attempt.right &= out[i] == s.expected[i];
  return attempt;
}

TEST(PublicFaults, EachIsCaught) {
  EXPECT_GE(std::size(kFaults), 20u);
  for (const Fault& fault : kFaults) {
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      const Attempt attempt = run(fault, false, seed);
      EXPECT_TRUE(!attempt.report.clean() || !attempt.right) << "not caught with seed " << seed << ": " << fault.what << "\n" << fault.source;
      if (seed == 1) std::printf("%-18s %s\n", attempt.report.clean() ? "other results" : fault_name(attempt.report.faults[0].kind), fault.what);
    }
  }
}

TEST(PublicFaults, EachFixIsClean) {
  const uint64_t seeds = std::getenv("FULMEN_TEST_FULL") != nullptr ? 50 : 10;
  for (const Fault& fault : kFaults) {
    for (uint64_t seed = 1; seed <= seeds; ++seed) {
      const Attempt attempt = run(fault, true, seed);
      ASSERT_TRUE(attempt.report.clean()) << fault.what << "\n" << attempt.report.text();
      ASSERT_TRUE(attempt.right) << "other results: " << fault.what;
    }
  }
}

}  // namespace
}  // namespace fulmen
