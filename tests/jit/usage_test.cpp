// What the log and the cubin give away. The faults are made by kernels that have them, not by texts we wrote.
#include "jit/usage.hpp"

#include <gmock/gmock.h>

#include "support.hpp"

namespace fulmen::jit_test {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

class Usage : public testing::TestWithParam<int> {
 protected:
  const CompiledKernel& compile(const std::string& body, const char* target = "sm_80", const std::string& more = "") {
    Unit unit = small_unit();
    unit.user_source += more;
    unit.body = body;
    return kernels.get(unit, target_by_name(target));
  }
  TempDir dir;
  KernelLibrary kernels{options_in(dir, GetParam())};
};
INSTANTIATE_TEST_SUITE_P(Pinned, Usage, testing::Values(12, 13));

TEST_P(Usage, ReadsSharedMemoryAndRegisters) {
  const CompiledKernel& kernel =
      compile("__shared__ float s[300]; s[threadIdx.x] = params.by; __syncthreads(); params.x[threadIdx.x] = s[5];");
  EXPECT_EQ(kernel.usage.static_smem_bytes, 1200);
  EXPECT_GE(kernel.usage.registers, 4);
  EXPECT_LE(kernel.usage.registers, 255);
  EXPECT_THAT(code_faults(kernel.log, kernel.cubin), IsEmpty());
}

TEST_P(Usage, FindsLocalMemory) {
  const CompiledKernel& kernel = compile(
      "float a[64]; for (int i = 0; i < 64; ++i) a[i] = params.x[i]; for (int i = 0; i < params.n; ++i) "
      "a[(i * 7 + params.n) & 63] += params.by; params.x[0] = a[params.n & 63];");
  EXPECT_TRUE(kernel.usage.uses_local_memory()) << kernel.log;
  EXPECT_THAT(code_faults(kernel.log, kernel.cubin), Contains(HasSubstr("local memory")));
}

TEST_P(Usage, FindsSpills) {
  Unit unit = small_unit();
  unit.num_threads = 1024;  // 64 registers a thread
  unit.asserts.clear();
  unit.body = "float a[120]; ";
  for (int i = 0; i < 120; ++i) unit.body += "a[" + std::to_string(i) + "] = params.x[" + std::to_string(i * 33) + "]; ";
  unit.body += "__syncthreads(); ";
  for (int i = 0; i < 120; ++i) unit.body += "params.x[" + std::to_string(7000 - i * 31) + "] = a[" + std::to_string(i) + "] * params.by; ";
  const CompiledKernel& kernel = kernels.get(unit, target_by_name("sm_80"));
  EXPECT_GT(kernel.usage.spill_store_bytes, 0) << kernel.log;
  EXPECT_GT(kernel.usage.spill_load_bytes, 0) << kernel.log;
}

TEST_P(Usage, FindsCalls) {
  const CompiledKernel& division =
      compile("long long n = params.n; params.x[0] = float((n << 40) / (long long)(params.x[1]));");
  EXPECT_THAT(code_faults(division.log, division.cubin), Contains(HasSubstr("$__internal_")));
  const CompiledKernel& root = compile("params.x[0] = __fsqrt_rn(params.by);");
  EXPECT_THAT(code_faults(root.log, root.cubin), Contains(HasSubstr("$__internal_")));
}

TEST_P(Usage, FindsSerialisedMatrixInstructions) {
  // An accumulator is changed by hand while matrix instructions on it are in flight.
  const std::string wgmma =
      "asm volatile(\"{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3}, %4, %5, p, 1, 1, 0, 0;}\" : \"+f\"(d[0]), \"+f\"(d[1]), \"+f\"(d[2]), \"+f\"(d[3]) : "
      "\"l\"((long long)params.n), \"l\"(64ll)); ";
  const CompiledKernel& kernel = compile(
      "float d[4] = {}; asm volatile(\"wgmma.fence.sync.aligned;\"); " + wgmma + "d[0] += params.by; " + wgmma +
          "asm volatile(\"wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;\"); "
          "params.x[threadIdx.x] = d[0] + d[1] + d[2] + d[3];",
      "sm_90a");
  EXPECT_THAT(code_faults(kernel.log, kernel.cubin), Contains(HasSubstr("wgmma"))) << kernel.log;
}

TEST(UsageText, EachCodeCountsAndTheirNeighboursDoNot) {
  const std::string good = "ptxas info    : Used 8 registers, 360 bytes cmem[0]\n";
  EXPECT_THAT(code_faults(good, ""), IsEmpty());
  for (int code = 7500; code < 7530; ++code) {
    const std::string log = good + "ptxas info    : (C" + std::to_string(code) + ") something\n";
    const bool counts = code == 7508 || (code >= 7510 && code <= 7519);
    EXPECT_EQ(code_faults(log, "").size(), counts ? 1u : 0u) << code;
  }
  EXPECT_THAT(code_faults("", ""), Contains(HasSubstr("no registers")));
}

}  // namespace
}  // namespace fulmen::jit_test
