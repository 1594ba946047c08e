#include "core/check.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <utility>

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
    default: return "an unknown dtype";
  }
}

int dtype_size_or_0(int32_t dtype) {
  switch (dtype) {
    case FULMEN_F32: case FULMEN_I32: case FULMEN_U32: return 4;
    case FULMEN_F16: case FULMEN_BF16: return 2;
    case FULMEN_I64: case FULMEN_U64: return 8;
    case FULMEN_F8_E4M3: case FULMEN_F8_E5M2: case FULMEN_U8: return 1;
    default: return 0;
  }
}

int dtype_size(int32_t dtype) {
  const int size = dtype_size_or_0(dtype);
  require(size > 0, "dtype: expected a fulmen_dtype, found {}", dtype);
  return size;
}

bool is_float_dtype(int32_t dtype) { return dtype == FULMEN_F32 || dtype == FULMEN_F16 || dtype == FULMEN_BF16; }

int64_t num_elements(const fulmen_tensor& t) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  int64_t n = 1;
  bool fits = true;
  for (int i = 0; i < t.ndim; ++i) {
    if (t.shape[i] == 0) return 0;
    fits = fits && !__builtin_mul_overflow(n, t.shape[i], &n);
  }
  return fits ? n : kMost;
}

namespace {

// Bytes that the elements span: [data + low, data + high). False where an address would not fit, or for no tensor.
bool span_of(const fulmen_tensor& t, int64_t* low, int64_t* high) {
  *low = *high = 0;
  if (t.ndim < 1 || t.ndim > FULMEN_MAX_DIMS || dtype_size_or_0(t.dtype) == 0) return false;
  if (num_elements(t) == 0) return true;
  const int64_t size = dtype_size(t.dtype);
  for (int i = 0; i < t.ndim; ++i) {
    int64_t reach;
    if (t.shape[i] < 0 || __builtin_mul_overflow(t.shape[i] - 1, t.stride[i], &reach) || __builtin_mul_overflow(reach, size, &reach) ||
        __builtin_add_overflow(reach < 0 ? *low : *high, reach, reach < 0 ? low : high)) {
      return false;
    }
  }
  if (__builtin_add_overflow(*high, size, high)) return false;
  constexpr int64_t kAddressSpace = int64_t{1} << 56;  // and the sum with the data's address can't wrap around
  return *low >= -kAddressSpace && *high <= kAddressSpace;
}

bool is_dense(const fulmen_tensor& t) {
  int64_t low, high;
  return span_of(t, &low, &high) && high - low == num_elements(t) * dtype_size(t.dtype);
}

}  // namespace

bool same_view(const fulmen_tensor& a, const fulmen_tensor& b) {
  if (a.data != b.data || a.ndim != b.ndim || a.dtype != b.dtype) return false;
  for (int i = 0; i < a.ndim; ++i) {
    if (a.shape[i] != b.shape[i] || (a.shape[i] > 1 && a.stride[i] != b.stride[i])) return false;
  }
  return true;
}

bool surely_overlap(const fulmen_tensor& a, const fulmen_tensor& b) {
  int64_t a_low, a_high, b_low, b_high;
  if (!present(a) || !present(b) || !span_of(a, &a_low, &a_high) || !span_of(b, &b_low, &b_high)) return false;
  if (a_low == a_high || b_low == b_high) return false;
  const auto a_data = reinterpret_cast<intptr_t>(a.data), b_data = reinterpret_cast<intptr_t>(b.data);
  if (a_data + a_low >= b_data + b_high || b_data + b_low >= a_data + a_high) return false;
  return a_data == b_data || (is_dense(a) && is_dense(b));
}

std::string Extents::text() const {
  std::string text = fmt::format("{}[", prefix);
  for (int i = 0; i < count && i < FULMEN_MAX_DIMS; ++i) text += fmt::format("{}{}", i ? ", " : "", values[i]);
  return text + "]";
}

namespace {

constexpr int64_t kMostElements = int64_t{1} << 56;

}  // namespace

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
  int64_t extents = 1;  // zeros aside: products of some of the sizes must fit as well
  for (int i = 0; i < t_.ndim; ++i) {
    require(!__builtin_mul_overflow(extents, std::max<int64_t>(t_.shape[i], 1), &extents) && extents <= kMostElements,
            "{}: {}: expected at most 2^56 elements, found {}", op_, name_, shape_text(t_));
  }
  int64_t low, high;
  require(dtype_size_or_0(t_.dtype) == 0 || span_of(t_, &low, &high),
          "{}: {}: expected strides that stay within the address space, found {}", op_, name_, strides_text(t_));
  return *this;
}

// Dimensions by ascending stride: each must step over all that the smaller ones reach.
const Check& Check::distinct() const {
  if (num_elements(t_) <= 1) return *this;
  int order[FULMEN_MAX_DIMS];
  int n = 0;
  const auto step = [&](int i) { return std::abs(t_.stride[order[i]]); };
  for (int i = 0; i < t_.ndim; ++i) {
    if (t_.shape[i] <= 1) continue;
    order[n] = i;
    for (int j = n++; j > 0 && step(j) < step(j - 1); --j) std::swap(order[j], order[j - 1]);
  }
  int64_t reach = 0;
  for (int i = 0; i < n; ++i) {
    require(step(i) > reach, "{}: {}: expected strides that keep the elements of an output apart, found {} of {}", op_,
            name_, strides_text(t_), shape_text(t_));
    reach += (t_.shape[order[i]] - 1) * step(i);
  }
  return *this;
}

const Check& Check::apart_from(const char* other_name, const fulmen_tensor& other, bool or_same_view) const {
  require(!surely_overlap(t_, other) || (or_same_view && same_view(t_, other)),
          "{}: {}: expected memory apart from {}'s{}, found an overlap", op_, name_, other_name,
          or_same_view ? ", or the same tensor" : "");
  return *this;
}

const Check& Check::dtype(std::initializer_list<int32_t> allowed) const {
  for (int32_t a : allowed) {
    if (a == t_.dtype) return *this;
  }
  std::string expected;
  for (int32_t a : allowed) expected += fmt::format("{}{}", expected.empty() ? "" : " | ", dtype_name(a));
  fail(FULMEN_INVALID_ARGUMENT, "{}: {}: expected {}, found {}", op_, name_, expected, dtype_name(t_.dtype));
}

const Check& Check::same_dtype(const char* other_name, const fulmen_tensor& other) const {
  require(t_.dtype == other.dtype, "{}: {}: expected {}'s dtype {}, found {}", op_, name_, other_name,
          dtype_name(other.dtype), dtype_name(t_.dtype));
  return *this;
}

const Check& Check::dims(std::initializer_list<Dim> expected) const {
  bool ok = t_.ndim == static_cast<int32_t>(expected.size());
  int i = 0;
  for (const Dim& dim : expected) ok = ok && dim.match(t_.shape[i++]);
  if (ok) return *this;
  std::string text;
  for (const Dim& dim : expected) text += fmt::format("{}{}", text.empty() ? "" : ", ", dim.text());
  fail(FULMEN_INVALID_ARGUMENT, "{}: {}: expected [{}], found {}", op_, name_, text, shape_text(t_));
}

const Check& Check::rows() const {
  const int last = t_.ndim - 1;
  require(t_.shape[last] <= 1 || t_.stride[last] == 1, "{}: {}: expected stride 1 in the last dimension, found {}", op_,
          name_, t_.stride[last]);
  return *this;
}

const Check& Check::aligned() const {
  const auto address = reinterpret_cast<uintptr_t>(t_.data);
  require(dtype_size_or_0(t_.dtype) > 0, "{}: {}: expected a fulmen_dtype, found {}", op_, name_, t_.dtype);
  require(address % static_cast<uintptr_t>(dtype_size(t_.dtype)) == 0,
          "{}: {}: expected data aligned to {} bytes, found address ending in {:#x}", op_, name_, dtype_size(t_.dtype),
          address & 0xff);
  return *this;
}

}  // namespace fulmen
