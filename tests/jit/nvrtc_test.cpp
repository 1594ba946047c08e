// Where NVRTC is looked for, what is taken and why not.
#include "jit/nvrtc.hpp"

#include <gmock/gmock.h>

#include <fstream>

#include "core/error.hpp"
#include "support.hpp"

namespace fulmen::jit_test {
namespace {

using testing::HasSubstr;

class Environment {  // sets a variable for a scope
 public:
  Environment(const char* name, const std::string& value) : name_(name) { setenv(name, value.c_str(), 1); }
  ~Environment() { unsetenv(name_); }

 private:
  const char* name_;
};

std::vector<NvrtcCandidate> candidates(std::string option, int driver_version = 0) {
  return Nvrtc::candidates({std::move(option), driver_version});
}

TEST(NvrtcSearch, AnExplicitFileIsTheOnlyCandidate) {
  for (const int major : {12, 13}) {
    const auto found = candidates(pinned_nvrtc(major));
    ASSERT_EQ(found.size(), 1u);
    EXPECT_EQ(found[0].origin, "option");
    EXPECT_EQ(found[0].reason, "used");
    EXPECT_EQ(found[0].version, major == 12 ? "12.4" : "13.0");
  }
}

TEST(NvrtcSearch, TheVariableComesAfterTheOption) {
  const Environment variable("FULMEN_NVRTC", pinned_nvrtc(12));
  EXPECT_EQ(Nvrtc::open({})->major(), 12);
  EXPECT_EQ(Nvrtc::open({pinned_nvrtc(13), 0})->major(), 13);
}

TEST(NvrtcSearch, NeverByARelativePath) {
  for (const char* path : {"libnvrtc.so.13", "./libnvrtc.so.13", "nvrtc/libnvrtc.so.13"}) {
    const auto found = candidates(path);
    ASSERT_EQ(found.size(), 1u);
    EXPECT_EQ(found[0].reason, "not an absolute path");
  }
  const Environment variable("FULMEN_NVRTC", "libnvrtc.so.13");
  EXPECT_THROW(Nvrtc::open({}), Error);
}

TEST(NvrtcSearch, SaysWhyAFileWillNotDo) {
  const TempDir dir;
  EXPECT_THAT(candidates(dir / "libnvrtc.so.13")[0].reason, HasSubstr("No such file"));
  std::ofstream(dir / "text") << "not a library";
  EXPECT_THAT(candidates(dir / "text")[0].reason, testing::AnyOf(HasSubstr("invalid ELF"), HasSubstr("too short")));
  for (const char* other : {"/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6"})
    if (fs::exists(other)) {
      EXPECT_THAT(candidates(other)[0].reason, HasSubstr("it lacks nvrtc"));
    }
}

TEST(NvrtcSearch, SkipsWhatIsNewerThanTheDriver) {
  EXPECT_THAT(candidates(pinned_nvrtc(13), 12080)[0].reason, HasSubstr("newer than the driver, which is of CUDA 12.8"));
  EXPECT_EQ(candidates(pinned_nvrtc(12), 12020)[0].reason, "used");  // a newer minor version is compatible
  EXPECT_EQ(candidates(pinned_nvrtc(12), 13000)[0].reason, "used");
}

TEST(NvrtcSearch, GoesThroughThePlacesInOrder) {
  const TempDir dir;
  const Environment package("FULMEN_NVRTC_PACKAGE", pinned_nvrtc(12));
  const auto found = candidates("");
  std::vector<std::string> origins;
  int used = 0;
  for (const NvrtcCandidate& c : found) {
    if (origins.empty() || origins.back() != c.origin) origins.push_back(c.origin);
    used += c.reason == "used";
    EXPECT_FALSE(c.reason.empty()) << c.path;
  }
  EXPECT_EQ(used, 1);
  // Beside this test and in /usr/local there may be one or none.
  std::erase(origins, "beside libfulmen");
  std::erase(origins, "/usr/local/cuda*");
  EXPECT_THAT(origins, testing::ElementsAre("Python package", "already loaded", "loader's path"));
  EXPECT_EQ(Nvrtc::open({})->major(), 12);
}

TEST(NvrtcSearch, TheErrorListsEveryCandidate) {
  try {
    Nvrtc::open({"/nowhere/libnvrtc.so.13", 0});
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), FULMEN_NO_DEVICE);
    EXPECT_THAT(error.text(), HasSubstr("/nowhere/libnvrtc.so.13"));
    EXPECT_THAT(error.text(), HasSubstr("No such file"));
  }
}

TEST(NvrtcSearch, InfoIsJson) {
  const TempDir dir;
  const std::string info = jit_info_json(options_in(dir));
  EXPECT_THAT(info, HasSubstr("\"nvrtc\": [{\"origin\": \"option\", \"path\": \""));
  EXPECT_THAT(info, HasSubstr("\"version\": \"13.0\", \"reason\": \"used\"}]"));
  EXPECT_THAT(info, HasSubstr("\"usable\": true"));
}

TEST(Nvrtc, KnowsItsTargets) {
  const auto old = Nvrtc::open({pinned_nvrtc(12), 0}), current = Nvrtc::open({pinned_nvrtc(13), 0});
  EXPECT_TRUE(old->supports("sm_90a"));
  EXPECT_FALSE(old->supports("sm_100"));
  EXPECT_TRUE(current->supports("sm_100"));
  EXPECT_FALSE(current->supports("sm_9"));
}

}  // namespace
}  // namespace fulmen::jit_test
