// What the tests of src/jit share: the pinned compilers, folders that vanish, a small kernel.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>
#include <vector>

#include "jit/kernels.hpp"

namespace fulmen::jit_test {

namespace fs = std::filesystem;

// The pinned NVRTC of a major version: what set-up placed in the tree, or what the environment names. Only ever an
// explicit path, so that an installed toolkit stays out of the tests.
inline std::string pinned_nvrtc(int major) {
  const std::string number = std::to_string(major);
  if (const char* path = getenv(("FULMEN_TEST_NVRTC" + number).c_str())) return path;
  return FULMEN_SOURCE_DIR "/.fulmen/nvrtc/" + number + "/libnvrtc.so." + number;
}

// A folder of this user's own, removed at the end.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (fs::temp_directory_path() / "fulmen-test-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  TempDir(const TempDir&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct ScaleParams {
  float* x;  // f32 [n]
  int32_t n;
  float by;
};

// A kernel that needs no file of kernels/ but the prelude. `tag` makes another kernel of it.
inline Unit small_unit(int tag = 0) {
  Unit unit;
  unit.kernel = "scale";
  unit.includes = {"kernels/prelude/prelude.hpp"};
  unit.user_source =
      "#pragma once\nstruct ScaleParams { float* x; int n; float by; };\n"
      "struct ScaleConfig { int tag; constexpr int num_threads() const { return 128; } };\n";
  unit.config_type = "ScaleConfig";
  unit.config = "{.tag = " + std::to_string(tag) + "}";
  unit.config_json = "{\"tag\": " + std::to_string(tag) + "}";
  unit.asserts = {{"sizeof(ScaleParams)", sizeof(ScaleParams)}, {"kConfig.num_threads()", 128}};
  unit.params = {{"ScaleParams", "params"}};
  unit.body = "const int i = blockIdx.x * 128 + threadIdx.x; if (i < params.n) params.x[i] *= params.by + kConfig.tag;";
  unit.num_threads = 128;
  return unit;
}

// Options that touch nothing of the machine's.
inline KernelOptions options_in(const TempDir& dir, int nvrtc_major = 13) {
  return {.cache_dir = dir / "cache", .nvrtc = pinned_nvrtc(nvrtc_major), .kernels_dir = "", .dump_dir = ""};
}

}  // namespace fulmen::jit_test
