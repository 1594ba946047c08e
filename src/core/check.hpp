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
int dtype_size_or_0(int32_t dtype);   // 0: no fulmen_dtype
bool is_float_dtype(int32_t dtype);   // f32, f16, bf16
inline bool present(const fulmen_tensor& t) { return t.data != nullptr; }
// Of a tensor of 1 to FULMEN_MAX_DIMS dimensions; INT64_MAX where the product doesn't fit.
int64_t num_elements(const fulmen_tensor& t);
// Do two tensors surely share bytes? False where their strides leave it open.
bool surely_overlap(const fulmen_tensor& a, const fulmen_tensor& b);
// Same data, shape and strides: what "may alias" allows.
bool same_view(const fulmen_tensor& a, const fulmen_tensor& b);

// Sizes or strides of a tensor as an argument of a message: text only where the message is written.
struct Extents {
  const char* prefix;
  const int64_t* values;
  int32_t count;
  std::string text() const;
};
inline Extents shape_text(const fulmen_tensor& t) { return {"", t.shape, t.ndim}; }
inline Extents strides_text(const fulmen_tensor& t) { return {"strides ", t.stride, t.ndim}; }

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
  const Check& aligned() const;  // data is a multiple of the element size
  const Check& distinct() const; // an output: no two elements share memory
  // An output that shares no memory with an input, or is the very same view where the op works in place.
  const Check& apart_from(const char* other_name, const fulmen_tensor& other, bool or_same_view = false) const;

 private:
  const char* op_;
  const char* name_;
  const fulmen_tensor& t_;
};

}  // namespace fulmen

template <>
struct fmt::formatter<fulmen::Extents> : formatter<std::string> {
  auto format(const fulmen::Extents& extents, format_context& context) const {
    return formatter<std::string>::format(extents.text(), context);
  }
};
