// Unit to cubin, with both pinned compilers.
#include "jit/kernels.hpp"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "core/error.hpp"
#include "jit/usage.hpp"
#include "plan/attend_sm80.hpp"
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

// NVRTC 13 initialises CUDA for a cache of its own, unless it is told not to.
TEST_P(WithNvrtc, InitialisesNoDriver) {
  const TempDir dir;
  const pid_t child = fork();
  if (child == 0) {
    void* driver = dlopen(FULMEN_FAKE_DRIVER, RTLD_NOW);
    const int* calls = driver ? static_cast<int*>(dlsym(driver, "fulmen_fake_driver_calls")) : nullptr;
    if (!calls || dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD) != driver) _exit(2);
    KernelLibrary kernels(options_in(dir, GetParam()));
    kernels.get(small_unit(), target_by_name("sm_80"));
    _exit(*calls != 0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_P(WithNvrtc, EveryFileOfKernelsCompilesByItself) {
  const TempDir dir;
  KernelLibrary kernels(options_in(dir, GetParam()));
  for (const auto& [name, text] : embedded_sources()) {
    Unit unit;
    unit.kernel = "alone";
    unit.num_threads = 32;
    if (name.starts_with("kernels/variants/")) {  // these stand inside the namespace of whoever includes them, once
      const std::string at = "kernels/variants/at.hpp";
      unit.includes = {"kernels/prelude/prelude.hpp"};
      unit.user_source = "namespace fulmen {\n#include <" + at + ">\n" +
                         (name == at ? "" : "#include <" + name + ">\n") + "}\n";
    } else {
      unit.includes = {name};
    }
    try {
      kernels.get(unit, target_by_name("sm_90a"));
    } catch (const Error& error) {
      ADD_FAILURE() << name << ": " << error.text();
    }
  }
}

fulmen_attention_spec spec_with_variant(const char* source) {
  fulmen_attention_spec spec{};
  spec.q_dtype = spec.kv_dtype = spec.o_dtype = FULMEN_BF16;
  spec.head_dim_qk = spec.head_dim_vo = 64;
  spec.variant_name = "Distance";
  spec.variant_source = source;
  return spec;
}

TEST_P(WithNvrtc, AUsersVariantIsCompiledIntoAttention) {
  const TempDir dir;
  KernelLibrary kernels(options_in(dir, GetParam()));
  const Target& target = target_by_name("sm_90a");
  const auto spec = spec_with_variant(
      "struct Distance {\n"
      "  struct Params { float per_token; };\n"
      "  static FULMEN_FN float logit(const Params& p, const VariantAt& at, float s) { return s - p.per_token * (at.position - at.key); }\n"
      "};");
  const std::vector<Unit> units = attend_sm80_units(target, spec, 1);
  ASSERT_FALSE(units.empty());
  EXPECT_EQ(code_faults(kernels.get(units[0], target).log, kernels.get(units[0], target).cubin), std::vector<std::string>());
}

TEST_P(WithNvrtc, AMistakeInAUsersVariantIsShownWhereItStands) {
  const TempDir dir;
  KernelLibrary kernels(options_in(dir, GetParam()));
  const Target& target = target_by_name("sm_90a");
  const auto spec = spec_with_variant("struct Distance {\n  struct Params {};\n  static FULMEN_FN bool visible(const Params&, const VariantAt&) { return rubbish; }\n};");
  try {
    kernels.get(attend_sm80_units(target, spec, 1)[0], target);
    FAIL() << "compiled";
  } catch (const Error& error) {
    EXPECT_THAT(error.text(), testing::HasSubstr("Distance(3)")) << error.text();
    EXPECT_THAT(error.text(), testing::HasSubstr("rubbish"));
  }
}

TEST(Kernels, CountsWhereAKernelCameFrom) {
  const TempDir dir;
  const Target& target = target_by_name("sm_80");
  KernelLibrary first(options_in(dir));
  const CompiledKernel& compiled = first.get(small_unit(), target);
  EXPECT_FALSE(compiled.from_disk);
  EXPECT_EQ(&first.get(small_unit(), target), &compiled);
  EXPECT_EQ(first.counters().compiles, 1);
  EXPECT_EQ(first.counters().memory_hits, 1);

  // Another process's turn, with no compiler anywhere: a prepared cache is the ahead-of-time mode.
  KernelOptions options = options_in(dir);
  options.nvrtc = "/nowhere/libnvrtc.so.13";
  double best = 1;
  for (int i = 0; i < 5; ++i) {
    KernelLibrary second(options);
    const CompiledKernel& loaded = second.get(small_unit(), target);
    EXPECT_TRUE(loaded.from_disk);
    EXPECT_EQ(loaded.cubin, compiled.cubin);
    EXPECT_EQ(loaded.log, compiled.log);
    EXPECT_EQ(loaded.version, "13.0");
    EXPECT_EQ(loaded.usage, compiled.usage);
    EXPECT_EQ(second.counters().disk_hits, 1);
    EXPECT_EQ(second.counters().compiles, 0);
    best = std::min(best, loaded.seconds);
    EXPECT_THROW(second.get(small_unit(1), target), Error);
  }
  EXPECT_LT(best, 0.02) << "the promise for a kernel in the disk cache";
}

TEST(Kernels, AnEntryIsUsedWhicheverCompilerMadeIt) {
  const TempDir dir;
  KernelLibrary old(options_in(dir, 12)), current(options_in(dir, 13));
  old.get(small_unit(), target_by_name("sm_80"));
  EXPECT_EQ(current.get(small_unit(), target_by_name("sm_80")).version, "12.4");
}

TEST(Kernels, TwoTargetsAndTwoConfigsAreFourKernels) {
  const TempDir dir;
  KernelLibrary kernels(options_in(dir));
  std::map<std::string, int> names;
  for (const char* target : {"sm_80", "sm_90a"})
    for (const int tag : {0, 1}) ++names[kernels.get(small_unit(tag), target_by_name(target)).name];
  EXPECT_EQ(names.size(), 4u);
}

TEST(Kernels, ThreadsThatWantOneKernelMakeItOnce) {
  const TempDir dir;
  KernelLibrary kernels(options_in(dir));
  std::vector<std::thread> threads;
  std::vector<const CompiledKernel*> got(8);
  for (auto& kernel : got)
    threads.emplace_back([&] { kernel = &kernels.get(small_unit(), target_by_name("sm_80")); });
  for (std::thread& thread : threads) thread.join();
  for (const CompiledKernel* kernel : got) EXPECT_EQ(kernel, got[0]);
  EXPECT_EQ(kernels.counters().compiles, 1);
  EXPECT_EQ(kernels.counters().memory_hits, 7);
}

TEST(Kernels, PrepareMakesAllAndReportsEach) {
  const TempDir dir;
  KernelLibrary kernels(options_in(dir));
  std::vector<Unit> units;
  for (int tag = 0; tag < 12; ++tag) units.push_back(small_unit(tag % 10));  // two stand in the list twice
  std::vector<int> done;
  kernels.prepare(units, target_by_name("sm_90a"), 4, [&](int n, int total, const CompiledKernel& kernel) {
    EXPECT_EQ(total, 12);
    EXPECT_EQ(kernel.kernel, "scale");
    done.push_back(n);
  });
  std::vector<int> expected(12);
  for (int i = 0; i < 12; ++i) expected[i] = i + 1;
  EXPECT_EQ(done, expected);
  EXPECT_EQ(kernels.counters().compiles, 10);
}

TEST(Kernels, PrepareGoesOnAfterAnErrorAndThrowsIt) {
  const TempDir dir;
  KernelLibrary kernels(options_in(dir));
  std::vector<Unit> units = {small_unit(0), small_unit(1), small_unit(2)};
  units[1].body = "this is no code";
  EXPECT_THROW(kernels.prepare(units, target_by_name("sm_80"), 2), Error);
  EXPECT_EQ(kernels.counters().compiles, 2);
  EXPECT_NO_THROW(kernels.get(units[2], target_by_name("sm_80"), false));
}

TEST(Kernels, SealRefusesWhatWouldCompileAndNothingElse) {
  const TempDir dir;
  const Target& target = target_by_name("sm_80");
  {
    KernelLibrary before(options_in(dir));
    before.get(small_unit(1), target);
  }
  KernelLibrary kernels(options_in(dir));
  kernels.get(small_unit(0), target);
  kernels.seal();
  EXPECT_NO_THROW(kernels.get(small_unit(0), target));
  EXPECT_NO_THROW(kernels.get(small_unit(1), target)) << "it is on disk";
  try {
    kernels.get(small_unit(2), target);
    FAIL() << "expected a refusal";
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), FULMEN_NOT_PREPARED);
    EXPECT_THAT(error.text(), HasSubstr("{\"tag\": 2}"));
  }
}

TEST_P(WithNvrtc, ACompileErrorCarriesLogConfigAndText) {
  const TempDir dir;
  KernelLibrary kernels(options_in(dir, GetParam()));
  Unit unit = small_unit(7);
  unit.asserts.push_back({"sizeof(ScaleParams)", 24});
  for (int attempt = 0; attempt < 2; ++attempt) {  // an error is not remembered
    try {
      kernels.get(unit, target_by_name("sm_80"));
      FAIL() << "expected an error";
    } catch (const Error& error) {
      EXPECT_EQ(error.status(), FULMEN_COMPILE_FAILED);
      EXPECT_THAT(error.text(), HasSubstr("host and device disagree"));
      EXPECT_THAT(error.text(), HasSubstr("config: {\"tag\": 7}"));
      EXPECT_THAT(error.text(), HasSubstr("static_assert(sizeof(ScaleParams) == 24"));
      const size_t at = error.text().find("text: ") + 6;
      EXPECT_EQ(read_file(error.text().substr(at, error.text().find('\n', at) - at)), program_text(unit));
    }
  }
}

TEST(Kernels, AnUnknownTargetIsNamed) {
  const TempDir dir;
  KernelLibrary kernels(options_in(dir, 12));
  try {
    kernels.get(small_unit(), target_by_name("sm_120"));
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_THAT(error.text(), testing::AllOf(HasSubstr("12.4"), HasSubstr("sm_120")));
  }
}

TEST(Kernels, DumpsTextPtxLogAndCubin) {
  const TempDir dir;
  KernelOptions options = options_in(dir);
  options.dump_dir = dir / "dump";
  KernelLibrary kernels(options);
  const CompiledKernel& kernel = kernels.get(small_unit(), target_by_name("sm_80"));
  const std::string stem = options.dump_dir + "/scale-" + kernel.name.substr(0, 12);
  EXPECT_EQ(read_file(stem + ".cu"), program_text(small_unit()));
  EXPECT_EQ(read_file(stem + ".cubin"), kernel.cubin);
  EXPECT_EQ(read_file(stem + ".log"), kernel.log);
  EXPECT_THAT(read_file(stem + ".ptx"), HasSubstr(".entry fulmen_entry"));
}

TEST(Kernels, ReadsTheTreeThatKernelsDirNames) {
  const TempDir dir;
  fs::create_directories(dir / "tree/kernels/prelude");
  std::ofstream(dir / "tree/kernels/prelude/prelude.hpp") << "namespace fulmen {}\nextern \"C\" __device__ int from_the_tree;\n";
  KernelOptions options = options_in(dir);
  options.kernels_dir = dir / "tree";
  KernelLibrary kernels(options);
  EXPECT_THAT(kernels.get(small_unit(), target_by_name("sm_80")).cubin, HasSubstr("from_the_tree"));
}

TEST(Kernels, WithoutACacheKernelsStayInMemory) {
  const TempDir dir;
  KernelOptions options = options_in(dir);
  options.cache_dir = "relative/path";
  KernelLibrary kernels(options);
  EXPECT_FALSE(kernels.cache().usable());
  EXPECT_THAT(kernels.cache().note(), HasSubstr("not an absolute path"));
  kernels.get(small_unit(), target_by_name("sm_80"));
  kernels.get(small_unit(), target_by_name("sm_80"));
  EXPECT_EQ(kernels.counters().compiles, 1);
  EXPECT_FALSE(fs::exists("relative"));
}

}  // namespace
}  // namespace fulmen::jit_test
