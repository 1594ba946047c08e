// Checks of tensors: symbolic sizes are bound by the first tensor that has them and compared by the others.
//
//   Sym num_tokens{"num_tokens"}, head_dim{"head_dim"};
//   Check("append_kv", "k", args.k).present().dtype({FULMEN_F16, FULMEN_BF16}).dims({num_tokens, 8, head_dim});
//   -> append_kv: k: expected [num_tokens = 37, 8, head_dim = 64], found [36, 8, 64]
#pragma once

#include <initializer_list>
#include <string>

#include "core/error.hpp"

namespace fulmen {

const char* dtype_name(int32_t dtype);
int dtype_size(int32_t dtype);
bool is_float_dtype(int32_t dtype);   // f32, f16, bf16
inline bool present(const fulmen_tensor& t) { return t.data != nullptr; }
int64_t num_elements(const fulmen_tensor& t);
std::string shape_text(const fulmen_tensor& t);

// A size with a name; negative while unbound.
struct Sym {
  const char* name;
  int64_t value = -1;
  operator int64_t() const { return value; }
};

class Dim {
 public:
  Dim(Sym& sym) : sym_(&sym) {}                              // NOLINT: implicit on purpose, dims({num_tokens, 3}) reads well
  Dim(int64_t value) : value_(value) {}                      // NOLINT
  Dim(int value) : value_(value) {}                          // NOLINT
  bool match(int64_t found) const;
  std::string text() const;

 private:
  Sym* sym_ = nullptr;
  int64_t value_ = -1;
};

class Check {
 public:
  Check(const char* op, const char* name, const fulmen_tensor& tensor) : op_(op), name_(name), t_(tensor) {}

  const Check& present() const;  // data is not NULL (a tensor with a zero extent may have NULL data)
  const Check& dtype(std::initializer_list<int32_t> allowed) const;
  const Check& same_dtype(const char* other_name, const fulmen_tensor& other) const;
  const Check& dims(std::initializer_list<Dim> expected) const;
  const Check& rows() const;     // the last dimension has stride 1 (or extent 1)
  const Check& aligned() const;  // data and strides are multiples of the element size

 private:
  const char* op_;
  const char* name_;
  const fulmen_tensor& t_;
};

}  // namespace fulmen
