#include "core/check.hpp"

namespace fulmen {

const char* dtype_name(int32_t dtype) {
  switch (dtype) {
    case FULMEN_F32: return "f32";
    case FULMEN_F16: return "f16";
    case FULMEN_BF16: return "bf16";
    case FULMEN_F8_E4M3: return "f8_e4m3";
    case FULMEN_F8_E5M2: return "f8_e5m2";
    case FULMEN_I32: return "i32";
    case FULMEN_I64: return "i64";
    case FULMEN_U8: return "u8";
    case FULMEN_U32: return "u32";
    case FULMEN_U64: return "u64";
    default: return "unknown dtype";
  }
}

int dtype_size(int32_t dtype) {
  switch (dtype) {
    case FULMEN_F32: case FULMEN_I32: case FULMEN_U32: return 4;
    case FULMEN_F16: case FULMEN_BF16: return 2;
    case FULMEN_I64: case FULMEN_U64: return 8;
    case FULMEN_F8_E4M3: case FULMEN_F8_E5M2: case FULMEN_U8: return 1;
    default: fail(FULMEN_INVALID_ARGUMENT, "dtype: expected a fulmen_dtype, found {}", dtype);
  }
}

bool is_float_dtype(int32_t dtype) { return dtype == FULMEN_F32 || dtype == FULMEN_F16 || dtype == FULMEN_BF16; }

int64_t num_elements(const fulmen_tensor& t) {
  int64_t n = 1;
  for (int i = 0; i < t.ndim; ++i) n *= t.shape[i];
  return n;
}

std::string shape_text(const fulmen_tensor& t) {
  std::string text = "[";
  for (int i = 0; i < t.ndim && i < FULMEN_MAX_DIMS; ++i) text += fmt::format("{}{}", i ? ", " : "", t.shape[i]);
  return text + "]";
}

bool Dim::match(int64_t found) const {
  if (sym_ == nullptr) return found == value_;
  if (sym_->value < 0) sym_->value = found;
  return sym_->value == found;
}

std::string Dim::text() const {
  if (sym_ == nullptr) return fmt::format("{}", value_);
  return sym_->value < 0 ? std::string(sym_->name) : fmt::format("{} = {}", sym_->name, sym_->value);
}

const Check& Check::present() const {
  require(t_.ndim > 0 && t_.ndim <= FULMEN_MAX_DIMS, "{}: {}: expected a tensor of 1 to {} dimensions, found {}", op_,
          name_, FULMEN_MAX_DIMS, t_.ndim);
  for (int i = 0; i < t_.ndim; ++i) {
    require(t_.shape[i] >= 0, "{}: {}: expected sizes of at least 0, found {}", op_, name_, shape_text(t_));
  }
  require(t_.data != nullptr || num_elements(t_) == 0, "{}: {}: expected data, found NULL", op_, name_);
  return *this;
}

const Check& Check::dtype(std::initializer_list<int32_t> allowed) const {
  std::string expected;
  for (int32_t a : allowed) {
    if (a == t_.dtype) return *this;
    expected += fmt::format("{}{}", expected.empty() ? "" : " | ", dtype_name(a));
  }
  fail(FULMEN_INVALID_ARGUMENT, "{}: {}: expected {}, found {}", op_, name_, expected, dtype_name(t_.dtype));
}

const Check& Check::same_dtype(const char* other_name, const fulmen_tensor& other) const {
  require(t_.dtype == other.dtype, "{}: {}: expected {}'s dtype {}, found {}", op_, name_, other_name,
          dtype_name(other.dtype), dtype_name(t_.dtype));
  return *this;
}

const Check& Check::dims(std::initializer_list<Dim> expected) const {
  bool ok = t_.ndim == static_cast<int32_t>(expected.size());
  std::string text = "[";
  int i = 0;
  for (const Dim& dim : expected) {
    ok = ok && dim.match(t_.shape[i]);
    text += fmt::format("{}{}", i ? ", " : "", dim.text());
    ++i;
  }
  require(ok, "{}: {}: expected {}], found {}", op_, name_, text, shape_text(t_));
  return *this;
}

const Check& Check::rows() const {
  const int last = t_.ndim - 1;
  require(t_.shape[last] <= 1 || t_.stride[last] == 1, "{}: {}: expected stride 1 in the last dimension, found {}", op_,
          name_, t_.stride[last]);
  return *this;
}

const Check& Check::aligned() const {
  const auto address = reinterpret_cast<uintptr_t>(t_.data);
  require(address % static_cast<uintptr_t>(dtype_size(t_.dtype)) == 0,
          "{}: {}: expected data aligned to {} bytes, found address ending in {:#x}", op_, name_, dtype_size(t_.dtype),
          address & 0xff);
  return *this;
}

}  // namespace fulmen
