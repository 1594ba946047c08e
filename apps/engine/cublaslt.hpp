// Matrix products on the GPU by cuBLASLt, opened at run time.
//
// Looked for in this order: FULMEN_CUBLASLT (an absolute file), beside libfulmen, one already loaded, the loader's path,
// /usr/local/cuda*. Never a relative path; one newer in major version than the driver is skipped.
#pragma once

#include "engine/cuda_driver.hpp"

#include <fulmen/fulmen.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

namespace fulmen::engine {

struct CublasLtFunctions;

class CublasLt {
 public:
  /// driver_major: the newest CUDA that the driver runs. Throws cuda::Unavailable naming every place and why not.
  explicit CublasLt(int driver_major);
  ~CublasLt();
  const std::string& path() const { return path_; }
  size_t version() const { return version_; }

  /// y [rows, n] = x [rows, k] w [n, k]^T + bias [n], all row-major and dense; x, w, bias of `dtype` (f16 | bf16), y of
  /// `dtype` or f32, sums in fp32. pinned_rows > 0: y's rows are made pinned_rows at a time by one algorithm, so that a
  /// row's bits depend on nothing but itself; x and y must then have room for whole multiples of it.
  void multiply(const void* w, const void* x, const void* bias, void* y, int64_t rows, int64_t n, int64_t k,
                fulmen_dtype dtype, fulmen_dtype y_dtype, int64_t pinned_rows, const cuda::Stream& stream);

  /// Candidates in the order of the search.
  static std::vector<std::string> candidates();

 private:
  struct Product;  // descriptors and algorithm of one shape
  Product& product(int64_t rows, int64_t n, int64_t k, fulmen_dtype dtype, fulmen_dtype y_dtype, bool bias);

  std::unique_ptr<CublasLtFunctions> functions_;
  std::string path_;
  size_t version_ = 0;
  void* handle_ = nullptr;
  cuda::Memory workspace_;
  std::map<std::tuple<int64_t, int64_t, int64_t, int, int, bool>, std::unique_ptr<Product>> products_;
};

}  // namespace fulmen::engine
