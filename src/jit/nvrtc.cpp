#include "jit/nvrtc.hpp"

#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>

#include "core/error.hpp"

namespace fulmen {

namespace fs = std::filesystem;

// nvrtc.h in as many lines as are used. An enum is an int, a program is a pointer.
struct Nvrtc::Functions {
  using Program = void*;
  const char* (*GetErrorString)(int);
  int (*Version)(int*, int*);
  int (*GetNumSupportedArchs)(int*);
  int (*GetSupportedArchs)(int*);
  int (*CreateProgram)(Program*, const char* text, const char* name, int num_headers, const char* const* headers,
                       const char* const* names);
  int (*DestroyProgram)(Program*);
  int (*CompileProgram)(Program, int num_options, const char* const* options);
  int (*GetProgramLogSize)(Program, size_t*);
  int (*GetProgramLog)(Program, char*);
  int (*GetCUBINSize)(Program, size_t*);
  int (*GetCUBIN)(Program, char*);
  int (*GetPTXSize)(Program, size_t*);
  int (*GetPTX)(Program, char*);
};

Nvrtc::~Nvrtc() = default;

namespace {

constexpr int kOldestMajor = 12, kNewestMajor = 13;
constexpr int kInvalidOption = 5;  // NVRTC_ERROR_INVALID_OPTION

std::string environment(const char* name) {
  const char* value = secure_getenv(name);
  return value ? value : "";
}

std::string path_of(void* handle) {
  link_map* map = nullptr;
  return dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map->l_name ? map->l_name : "";
}

std::string folder_of_this_library() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(&folder_of_this_library), &info) || !info.dli_fname) return {};
  std::error_code error;
  return fs::weakly_canonical(info.dli_fname, error).parent_path().string();
}

// Newest first, so that a folder with several gives the one that knows most targets.
std::vector<std::string> libraries_in(const fs::path& folder) {
  std::vector<std::string> paths;
  for (int major = kNewestMajor; major >= kOldestMajor; --major) {
    const fs::path path = folder / fmt::format("libnvrtc.so.{}", major);
    std::error_code error;
    if (fs::exists(path, error)) paths.push_back(path.string());
  }
  return paths;
}

std::vector<std::string> toolkit_libraries() {
  std::vector<fs::path> roots;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/usr/local", error))
    if (entry.path().filename().string().starts_with("cuda")) roots.push_back(entry.path());
  std::sort(roots.rbegin(), roots.rend());
  std::vector<std::string> paths;
  for (const fs::path& root : roots)
    for (const char* folder : {"lib64", "lib", "targets/x86_64-linux/lib"})
      for (std::string& path : libraries_in(root / folder)) paths.push_back(std::move(path));
  return paths;
}

// One place to look. `load` asks the loader by name; a name not loaded yet is passed over with RTLD_NOLOAD.
struct Place {
  std::string origin;
  std::string path;
  int flags = 0;
};

// An explicit choice is the only candidate: what the user named is used, or the error says why it cannot be.
std::vector<Place> places(const NvrtcSearch& search) {
  if (!search.option.empty()) return {{"option", search.option}};
  if (std::string path = environment("FULMEN_NVRTC"); !path.empty()) return {{"FULMEN_NVRTC", path}};
  std::vector<Place> all;
  const auto add = [&all](const char* origin, const std::vector<std::string>& paths, int flags = 0) {
    for (const std::string& path : paths) all.push_back({origin, path, flags});
  };
  std::vector<std::string> names;
  for (int major = kNewestMajor; major >= kOldestMajor; --major) names.push_back(fmt::format("libnvrtc.so.{}", major));

  if (const std::string folder = folder_of_this_library(); !folder.empty())
    add("beside libfulmen", libraries_in(folder));
  if (const std::string path = environment("FULMEN_NVRTC_PACKAGE"); !path.empty()) add("Python package", {path});
  add("already loaded", names, RTLD_NOLOAD);
  add("loader's path", names);
  add("/usr/local/cuda*", toolkit_libraries());
  return all;
}

// NVRTC opens its builtins by bare name and some builds have no run path, so that a library of another origin could be
// taken. Those beside it are loaded first: the loader then finds them by that name.
void load_builtins_beside(const std::string& path, int major, int minor) {
  const fs::path builtins = fs::path(path).parent_path() / fmt::format("libnvrtc-builtins.so.{}.{}", major, minor);
  dlopen(builtins.c_str(), RTLD_NOW | RTLD_LOCAL);  // where it is missing, NVRTC's own log says so
}

}  // namespace

// Fills this object from an open library, or says in candidate.reason why it will not do.
bool Nvrtc::bind(void* handle, NvrtcCandidate& candidate, int driver_version) {
  Functions functions;
  std::string missing;
  const auto symbol = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    if (!function && missing.empty()) missing = name;
  };
  symbol(functions.GetErrorString, "nvrtcGetErrorString");
  symbol(functions.Version, "nvrtcVersion");
  symbol(functions.GetNumSupportedArchs, "nvrtcGetNumSupportedArchs");
  symbol(functions.GetSupportedArchs, "nvrtcGetSupportedArchs");
  symbol(functions.CreateProgram, "nvrtcCreateProgram");
  symbol(functions.DestroyProgram, "nvrtcDestroyProgram");
  symbol(functions.CompileProgram, "nvrtcCompileProgram");
  symbol(functions.GetProgramLogSize, "nvrtcGetProgramLogSize");
  symbol(functions.GetProgramLog, "nvrtcGetProgramLog");
  symbol(functions.GetCUBINSize, "nvrtcGetCUBINSize");
  symbol(functions.GetCUBIN, "nvrtcGetCUBIN");
  symbol(functions.GetPTXSize, "nvrtcGetPTXSize");
  symbol(functions.GetPTX, "nvrtcGetPTX");
  if (!missing.empty()) {
    candidate.reason = fmt::format("not an NVRTC of version 12 or newer: it lacks {}", missing);
    return false;
  }
  functions.Version(&major_, &minor_);
  candidate.version = version();
  if (major_ < kOldestMajor || major_ > kNewestMajor) {
    candidate.reason = fmt::format("expected version {} or {}", kOldestMajor, kNewestMajor);
    return false;
  }
  if (driver_version > 0 && major_ > driver_version / 1000) {
    candidate.reason = fmt::format("newer than the driver, which is of CUDA {}.{}", driver_version / 1000,
                                   driver_version % 1000 / 10);
    return false;
  }
  candidate.reason = "used";
  functions_ = std::make_unique<const Functions>(functions);
  path_ = candidate.path;
  load_builtins_beside(path_, major_, minor_);
  return true;
}

std::shared_ptr<const Nvrtc> Nvrtc::search(const NvrtcSearch& search, std::vector<NvrtcCandidate>& seen, bool all) {
  std::shared_ptr<const Nvrtc> chosen;
  for (const Place& place : places(search)) {
    NvrtcCandidate candidate{place.origin, place.path, "", ""};
    const bool named = place.origin == "already loaded" || place.origin == "loader's path";
    void* handle = nullptr;
    if (!named && !fs::path(place.path).is_absolute()) {
      candidate.reason = "not an absolute path";
    } else if (handle = dlopen(place.path.c_str(), RTLD_NOW | RTLD_LOCAL | place.flags); !handle) {
      const char* error = place.flags & RTLD_NOLOAD ? "not loaded" : dlerror();
      candidate.reason = error ? error : "cannot be opened";
    } else if (candidate.path = path_of(handle); !fs::path(candidate.path).is_absolute()) {
      candidate.reason = "the loader found it by a relative path";
    } else {
      std::shared_ptr<Nvrtc> nvrtc(new Nvrtc);
      if (nvrtc->bind(handle, candidate, search.driver_version)) {
        if (chosen) candidate.reason = "an earlier one is used";
        else chosen = nvrtc;
      }
    }
    seen.push_back(std::move(candidate));
    // Handles stay open: a compiler that ran may have left threads and exit handlers behind.
    if (chosen && !all) break;
  }
  return chosen;
}

std::shared_ptr<const Nvrtc> Nvrtc::open(const NvrtcSearch& search) {
  std::vector<NvrtcCandidate> seen;
  if (auto nvrtc = Nvrtc::search(search, seen, false)) return nvrtc;
  std::string text = "NVRTC: expected libnvrtc.so.12 or .13, found none that can be used";
  for (const NvrtcCandidate& c : seen) text += fmt::format("\n  {}: {}: {}", c.origin, c.path, c.reason);
  fail(FULMEN_NO_DEVICE, "{}", text);
}

std::vector<NvrtcCandidate> Nvrtc::candidates(const NvrtcSearch& search) {
  std::vector<NvrtcCandidate> seen;
  Nvrtc::search(search, seen, true);
  return seen;
}

std::string Nvrtc::version() const { return fmt::format("{}.{}", major_, minor_); }

bool Nvrtc::supports(const std::string& arch) const {
  int count = 0;
  if (functions_->GetNumSupportedArchs(&count) != 0) return true;  // then its own error will say
  std::vector<int> archs(count);
  functions_->GetSupportedArchs(archs.data());
  return std::any_of(archs.begin(), archs.end(), [&](int number) {
    const std::string name = fmt::format("sm_{}", number);
    return arch == name || arch == name + "a" || arch == name + "f";
  });
}

Nvrtc::Result Nvrtc::compile(const std::string& text, const Sources& headers,
                             const std::vector<std::string>& options) const {
  const Functions& f = *functions_;
  std::vector<const char*> names, texts, words;
  for (const auto& [name, header] : headers) names.push_back(name.c_str()), texts.push_back(header.c_str());
  for (const std::string& option : options) words.push_back(option.c_str());

  Functions::Program program = nullptr;
  const auto check = [&](int status, const char* call) {
    if (status == 0) return;
    if (program) f.DestroyProgram(&program);
    fail(FULMEN_COMPILE_FAILED, "NVRTC {}: {}: {}", version(), call, f.GetErrorString(status));
  };
  const auto read = [&](auto size_of, auto get, const char* call) {
    size_t bytes = 0;
    check(size_of(program, &bytes), call);
    std::string out(bytes, '\0');
    if (bytes > 0) check(get(program, out.data()), call);
    return out;
  };
  const auto read_text = [&](auto size_of, auto get, const char* call) {
    std::string out = read(size_of, get, call);
    while (!out.empty() && out.back() == '\0') out.pop_back();
    return out;
  };

  check(f.CreateProgram(&program, text.c_str(), "fulmen_unit.cu", static_cast<int>(names.size()), texts.data(),
                        names.data()),
        "nvrtcCreateProgram");
  Result result;
  // Newer versions keep a cache of their own in the driver's, for which they initialise CUDA: a prepare for a named
  // target must not, and code from there is beyond our rules of trust. Older ones don't know the word.
  words.push_back("--no-cache");
  int status = f.CompileProgram(program, static_cast<int>(words.size()), words.data());
  if (status == kInvalidOption) {
    words.pop_back();
    status = f.CompileProgram(program, static_cast<int>(words.size()), words.data());
  }
  result.ok = status == 0;
  result.log = read_text(f.GetProgramLogSize, f.GetProgramLog, "nvrtcGetProgramLog");
  if (!result.ok && result.log.empty()) result.log = f.GetErrorString(status);
  if (result.ok) {
    result.cubin = read(f.GetCUBINSize, f.GetCUBIN, "nvrtcGetCUBIN");
    result.ptx = read_text(f.GetPTXSize, f.GetPTX, "nvrtcGetPTX");
  }
  f.DestroyProgram(&program);
  return result;
}

}  // namespace fulmen
