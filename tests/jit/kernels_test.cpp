// Unit to cubin, with both pinned compilers.
#include "jit/kernels.hpp"

#include <gmock/gmock.h>

#include <fstream>
#include <sstream>
#include <thread>

#include "core/error.hpp"
#include "support.hpp"

namespace fulmen::jit_test {
namespace {

using testing::HasSubstr;

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

class WithNvrtc : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Pinned, WithNvrtc, testing::Values(12, 13));

TEST_P(WithNvrtc, CompilesASmallKernelForEveryTargetItKnows) {
  const TempDir dir;
  KernelLibrary kernels(options_in(dir, GetParam()));
  EXPECT_EQ(kernels.nvrtc()->version(), GetParam() == 12 ? "12.4" : "13.0");
  for (const Target& target : named_targets()) {
    if (!kernels.nvrtc()->supports(target.arch)) {
      EXPECT_EQ(GetParam(), 12) << target.name;
      EXPECT_GE(target.major, 10) << target.name;
      continue;
    }
    const CompiledKernel& kernel = kernels.get(small_unit(), target);
    EXPECT_THAT(kernel.cubin, testing::StartsWith("\x7f" "ELF")) << target.name;
    EXPECT_GT(kernel.usage.registers, 0) << target.name << kernel.log;
    EXPECT_FALSE(kernel.usage.uses_local_memory()) << kernel.log;
    EXPECT_TRUE(code_faults(kernel.log, kernel.cubin).empty());
    EXPECT_EQ(kernel.arch, target.arch);
  }
}

// NVRTC opens its builtins by bare name; with a toolkit installed the loader would find that one's.
TEST_P(WithNvrtc, OpensNothingOutsideItsFolder) {
  const TempDir dir;
  KernelLibrary kernels(options_in(dir, GetParam()));
  kernels.get(small_unit(), target_by_name("sm_80"));
  std::istringstream maps(read_file("/proc/self/maps"));
  const std::string folder12 = fs::canonical(pinned_nvrtc(12)).parent_path().string();
  const std::string folder13 = fs::canonical(pinned_nvrtc(13)).parent_path().string();
  for (std::string line; std::getline(maps, line);) {
    if (line.find("libnvrtc") != line.npos) {
      EXPECT_THAT(line, testing::AnyOf(HasSubstr(folder12), HasSubstr(folder13)));
    }
  }
}

}  // namespace
}  // namespace fulmen::jit_test
