#include "engine/cublaslt.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

namespace fulmen::engine {
namespace {

namespace fs = std::filesystem;

// cuBLASLt's ABI, as far as it is used.
constexpr int kComputeF32 = 68;
constexpr int kRealF32 = 0, kRealF16 = 2, kRealBf16 = 14;
constexpr int kDescTransposeA = 3, kDescEpilogue = 7, kDescBiasPointer = 8;
constexpr int kPreferenceWorkspace = 1;
constexpr int kTranspose = 1, kEpilogueBias = 4;
constexpr size_t kWorkspace = size_t{32} << 20;

struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Heuristic) == 96);

int real_type(fulmen_dtype dtype) {
  return dtype == FULMEN_F32 ? kRealF32 : dtype == FULMEN_F16 ? kRealF16 : kRealBf16;
}

void check(int status, const char* call) {
  if (status != 0) throw std::runtime_error(fmt::format("{}: status {} of cuBLASLt", call, status));
}

std::string folder_of_fulmen() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&fulmen_version), &info) == 0 || !info.dli_fname) return {};
  std::error_code error;
  const fs::path file = fs::canonical(info.dli_fname, error);
  return error ? std::string() : file.parent_path().string();
}

constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

}  // namespace

struct CublasLtFunctions {
  size_t (*version)();
  int (*create)(void**);
  int (*destroy)(void*);
  int (*desc_create)(void**, int, int);
  int (*desc_destroy)(void*);
  int (*desc_set)(void*, int, const void*, size_t);
  int (*layout_create)(void**, int, uint64_t, uint64_t, int64_t);
  int (*layout_destroy)(void*);
  int (*preference_create)(void**);
  int (*preference_destroy)(void*);
  int (*preference_set)(void*, int, const void*, size_t);
  int (*heuristic)(void*, void*, void*, void*, void*, void*, void*, int, Heuristic*, int*);
  int (*matmul)(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*, void*,
                void*, const Algorithm*, void*, size_t, cuda::Handle);
};

namespace {

bool find_all(void* library, CublasLtFunctions& f) {
  bool all = true;
  const auto find = [&](auto& function, const char* symbol) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
    all = all && function;
  };
  find(f.version, "cublasLtGetVersion");
  find(f.create, "cublasLtCreate");
  find(f.destroy, "cublasLtDestroy");
  find(f.desc_create, "cublasLtMatmulDescCreate");
  find(f.desc_destroy, "cublasLtMatmulDescDestroy");
  find(f.desc_set, "cublasLtMatmulDescSetAttribute");
  find(f.layout_create, "cublasLtMatrixLayoutCreate");
  find(f.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(f.preference_create, "cublasLtMatmulPreferenceCreate");
  find(f.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(f.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(f.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(f.matmul, "cublasLtMatmul");
  return all;
}

}  // namespace

std::vector<std::string> CublasLt::candidates() {
  std::vector<std::string> found;
  if (const char* chosen = secure_getenv("FULMEN_CUBLASLT"); chosen && *chosen) found.push_back(chosen);
  const auto add_folder = [&](const fs::path& folder) {
    std::error_code error;
    for (const char* name : kNames)
      if (fs::is_regular_file(folder / name, error)) found.push_back((folder / name).string());
  };
  if (const std::string folder = folder_of_fulmen(); !folder.empty()) add_folder(folder);
  for (const char* name : kNames) found.push_back(name);  // loaded already, or on the loader's path
  std::error_code error;
  std::vector<fs::path> toolkits;
  for (const auto& entry : fs::directory_iterator("/usr/local", error))
    if (entry.path().filename().string().rfind("cuda", 0) == 0) toolkits.push_back(entry.path());
  std::sort(toolkits.rbegin(), toolkits.rend());
  for (const fs::path& toolkit : toolkits) add_folder(toolkit / "lib64");
  return found;
}

CublasLt::CublasLt(int driver_major) : functions_(std::make_unique<CublasLtFunctions>()) {
  std::string reasons;
  const auto refuse = [&](const std::string& candidate, const std::string& why) {
    reasons += fmt::format("{}{} ({})", reasons.empty() ? "" : ", ", candidate, why);
  };
  const char* chosen = secure_getenv("FULMEN_CUBLASLT");
  for (const std::string& candidate : candidates()) {
    const bool is_name = candidate == kNames[0] || candidate == kNames[1];
    if (chosen && candidate == chosen && candidate[0] != '/') {
      refuse("FULMEN_CUBLASLT=" + candidate, "not an absolute path");
      continue;
    }
    void* library = is_name ? dlopen(candidate.c_str(), RTLD_NOW | RTLD_NOLOAD) : nullptr;
    if (!library) library = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      refuse(candidate, "doesn't open");
    } else if (!find_all(library, *functions_)) {
      refuse(candidate, "is not cuBLASLt");
      dlclose(library);
    } else if (const int major = static_cast<int>(functions_->version() / 10000); major > driver_major) {
      refuse(candidate, fmt::format("is of CUDA {}, the driver runs {}", major, driver_major));
      dlclose(library);
    } else {
      path_ = candidate;
      version_ = functions_->version();
      check(functions_->create(&handle_), "cublasLtCreate");
      workspace_ = cuda::Memory(kWorkspace);
      return;  // the library stays loaded: it registers handlers that run at exit
    }
  }
  throw cuda::Unavailable("no cuBLASLt for the matrix products: " + reasons);
}

struct CublasLt::Product {
  const CublasLtFunctions& f;
  void *desc = nullptr, *a = nullptr, *b = nullptr, *d = nullptr;
  Algorithm algorithm{};
  size_t workspace = 0;

  explicit Product(const CublasLtFunctions& functions) : f(functions) {}
  ~Product() {
    if (desc) f.desc_destroy(desc);
    for (void* layout : {a, b, d})
      if (layout) f.layout_destroy(layout);
  }
};

CublasLt::~CublasLt() {
  products_.clear();
  if (handle_) functions_->destroy(handle_);
}

// In cuBLASLt's column-major terms: D [n, rows] = A^T B with A = w as [k, n] and B = x as [k, rows].
CublasLt::Product& CublasLt::product(int64_t rows, int64_t n, int64_t k, fulmen_dtype dtype, fulmen_dtype y_dtype,
                                     bool bias) {
  auto& slot = products_[{rows, n, k, dtype, y_dtype, bias}];
  if (slot) return *slot;
  const CublasLtFunctions& f = *functions_;
  auto made = std::make_unique<Product>(f);
  check(f.desc_create(&made->desc, kComputeF32, kRealF32), "cublasLtMatmulDescCreate");
  check(f.desc_set(made->desc, kDescTransposeA, &kTranspose, sizeof kTranspose), "cublasLtMatmulDescSetAttribute");
  if (bias) check(f.desc_set(made->desc, kDescEpilogue, &kEpilogueBias, sizeof kEpilogueBias), "cublasLt epilogue");
  const int type = real_type(dtype);
  check(f.layout_create(&made->a, type, static_cast<uint64_t>(k), static_cast<uint64_t>(n), k), "cublasLt layout");
  check(f.layout_create(&made->b, type, static_cast<uint64_t>(k), static_cast<uint64_t>(rows), k), "cublasLt layout");
  check(f.layout_create(&made->d, real_type(y_dtype), static_cast<uint64_t>(n), static_cast<uint64_t>(rows), n),
        "cublasLt layout");
  void* preference = nullptr;
  check(f.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  f.preference_set(preference, kPreferenceWorkspace, &kWorkspace, sizeof kWorkspace);
  Heuristic best{};
  int count = 0;
  const int status =
      f.heuristic(handle_, made->desc, made->a, made->b, made->d, made->d, preference, 1, &best, &count);
  f.preference_destroy(preference);
  check(status, "cublasLtMatmulAlgoGetHeuristic");
  if (count == 0) throw std::runtime_error(fmt::format("cuBLASLt has no algorithm for {} x {} x {}", rows, n, k));
  made->algorithm = best.algorithm;
  made->workspace = best.workspace;
  slot = std::move(made);
  return *slot;
}

void CublasLt::multiply(const void* w, const void* x, const void* bias, void* y, int64_t rows, int64_t n, int64_t k,
                        fulmen_dtype dtype, fulmen_dtype y_dtype, int64_t pinned_rows, const cuda::Stream& stream) {
  const int64_t step = pinned_rows > 0 ? pinned_rows : rows;
  const int64_t x_bytes = k * 2, y_bytes = n * (y_dtype == FULMEN_F32 ? 4 : 2);
  const float one = 1, zero = 0;
  for (int64_t r = 0; r < rows; r += step) {
    Product& p = product(step, n, k, dtype, y_dtype, bias != nullptr);
    if (bias) check(functions_->desc_set(p.desc, kDescBiasPointer, &bias, sizeof bias), "cublasLt bias");
    char* out = static_cast<char*>(y) + r * y_bytes;
    check(functions_->matmul(handle_, p.desc, &one, w, p.a, static_cast<const char*>(x) + r * x_bytes, p.b, &zero, out,
                             p.d, out, p.d, &p.algorithm, workspace_.at(), p.workspace, stream.get()),
          "cublasLtMatmul");
  }
}

}  // namespace fulmen::engine
