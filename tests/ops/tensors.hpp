// Tensors for tests: any strides, every byte that no element covers is poisoned (0xff: NaN, -1) and must stay
// so.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "fulmen/fulmen.h"

namespace testing_ops {

inline int size_of(int dtype) {
  return dtype == FULMEN_F32 || dtype == FULMEN_I32 || dtype == FULMEN_U32 ? 4
         : dtype == FULMEN_I64 || dtype == FULMEN_U64                      ? 8
         : dtype == FULMEN_U8                                              ? 1
                                                                           : 2;
}
inline const char* name_of(int dtype) {
  return dtype == FULMEN_F32 ? "f32" : dtype == FULMEN_F16 ? "f16" : "bf16";
}

// Significand bits (with the hidden one), smallest normal exponent, largest value.
struct Format {
  int digits, min_exponent;
  double largest;
};
inline Format format_of(int dtype) {
  if (dtype == FULMEN_F16) return {11, -14, 65504.0};
  if (dtype == FULMEN_BF16) return {8, -126, 3.3895313892515355e38};
  return {24, -126, 3.4028234663852886e38};
}
inline double epsilon_of(int dtype) { return std::ldexp(1.0, 1 - format_of(dtype).digits); }

// Nearest value of the format, ties to even.
inline double round_to(int dtype, double x) {
  if (x == 0.0 || !std::isfinite(x)) return x;
  const Format f = format_of(dtype);
  const int exponent = std::max(std::ilogb(x), f.min_exponent);
  const double step = std::ldexp(1.0, exponent - f.digits + 1);
  const double r = std::nearbyint(x / step) * step;
  if (std::fabs(r) > f.largest) return std::copysign(std::numeric_limits<double>::infinity(), x);
  return r;
}

inline void encode(int dtype, double x, void* to) {
  if (dtype == FULMEN_F16) {
    const double r = round_to(dtype, x);
    uint16_t bits = std::signbit(r) ? 0x8000 : 0;
    const double a = std::fabs(r);
    if (std::isnan(r)) {
      bits = 0x7e00;
    } else if (std::isinf(r)) {
      bits |= 0x7c00;
    } else if (a < std::ldexp(1.0, -14)) {
      bits |= static_cast<uint16_t>(std::ldexp(a, 24));
    } else {
      const int e = std::ilogb(a);
      bits |= static_cast<uint16_t>(((e + 15) << 10) + static_cast<int>(std::ldexp(a, 10 - e)) - 1024);
    }
    std::memcpy(to, &bits, 2);
    return;
  }
  const float r = static_cast<float>(round_to(dtype, x));
  uint32_t bits;
  std::memcpy(&bits, &r, 4);
  if (dtype == FULMEN_F32) {
    std::memcpy(to, &bits, 4);
  } else {
    const uint16_t high = static_cast<uint16_t>(bits >> 16);
    std::memcpy(to, &high, 2);
  }
}

inline double decode(int dtype, const void* from) {
  if (dtype == FULMEN_F32) {
    float x;
    std::memcpy(&x, from, 4);
    return x;
  }
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  if (dtype == FULMEN_BF16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
  }
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  double a = exponent == 31  ? (mantissa ? std::numeric_limits<double>::quiet_NaN()
                                         : std::numeric_limits<double>::infinity())
             : exponent == 0 ? std::ldexp(mantissa, -24)
                             : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -a : a;
}

class Tensor {
 public:
  static constexpr int64_t kGuard = 67;  // odd: f16 and bf16 data start unaligned to their vectors

  Tensor() = default;
  // strides: empty for contiguous.
  Tensor(int dtype, std::vector<int64_t> shape, std::vector<int64_t> strides = {})
      : dtype_(dtype), shape_(std::move(shape)), strides_(std::move(strides)) {
    if (strides_.empty()) {
      strides_.assign(shape_.size(), 1);
      for (size_t i = shape_.size() - 1; i > 0; --i) strides_[i - 1] = strides_[i] * shape_[i];
    }
    int64_t last = 0;
    for (size_t i = 0; i < shape_.size(); ++i) last += std::max<int64_t>(shape_[i] - 1, 0) * strides_[i];
    bytes_.assign(static_cast<size_t>((last + 1 + 2 * kGuard) * size_of(dtype)), 0xff);
    covered_.assign(static_cast<size_t>(last + 1 + 2 * kGuard), false);
    for_each([&](int64_t offset) { covered_[static_cast<size_t>(offset + kGuard)] = true; });
  }

  int dtype() const { return dtype_; }
  int64_t size() const {
    int64_t n = 1;
    for (int64_t s : shape_) n *= s;
    return n;
  }
  const std::vector<int64_t>& shape() const { return shape_; }

  fulmen_tensor view() {
    fulmen_tensor t{};
    if (shape_.empty()) return t;
    t.data = bytes_.data() + kGuard * size_of(dtype_);
    t.dtype = dtype_;
    t.ndim = static_cast<int32_t>(shape_.size());
    for (size_t i = 0; i < shape_.size(); ++i) t.shape[i] = shape_[i], t.stride[i] = strides_[i];
    return t;
  }

  // Element by its index in row-major order.
  void* at(int64_t i) {
    int64_t offset = kGuard;
    for (size_t d = shape_.size(); d-- > 0;) {
      offset += i % shape_[d] * strides_[d];
      i /= shape_[d];
    }
    return bytes_.data() + offset * size_of(dtype_);
  }
  double get(int64_t i) { return decode(dtype_, at(i)); }
  void set(int64_t i, double x) { encode(dtype_, x, at(i)); }
  template <class Int>
  Int integer(int64_t i) {
    Int x;
    std::memcpy(&x, at(i), sizeof x);
    return x;
  }
  template <class Int>
  void set_integer(int64_t i, Int x) {
    std::memcpy(at(i), &x, sizeof x);
  }

  Tensor& fill_normal(std::mt19937_64& random, double scale = 1.0, double mean = 0.0) {
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < size(); ++i) set(i, mean + scale * normal(random));
    return *this;
  }
  std::vector<double> values() {
    std::vector<double> v(static_cast<size_t>(size()));
    for (int64_t i = 0; i < size(); ++i) v[static_cast<size_t>(i)] = get(i);
    return v;
  }
  const std::vector<unsigned char>& bytes() const { return bytes_; }

  // Nothing outside the elements was written.
  void expect_guards(const std::string& what) const {
    const size_t bytes = static_cast<size_t>(size_of(dtype_));
    for (size_t i = 0; i < covered_.size(); ++i) {
      if (covered_[i]) continue;
      for (size_t b = 0; b < bytes; ++b) {
        ASSERT_EQ(bytes_[i * bytes + b], 0xff)
            << what << ": byte written outside the tensor, at element " << static_cast<int64_t>(i) - kGuard;
      }
    }
  }

 private:
  template <class Body>
  void for_each(const Body& body) {
    for (int64_t i = 0; i < size(); ++i) {
      int64_t offset = 0, rest = i;
      for (size_t d = shape_.size(); d-- > 0;) {
        offset += rest % shape_[d] * strides_[d];
        rest /= shape_[d];
      }
      body(offset);
    }
  }

  int dtype_ = FULMEN_F32;
  std::vector<int64_t> shape_, strides_;
  std::vector<unsigned char> bytes_;
  std::vector<bool> covered_;
};

class Context {
 public:
  explicit Context(int threads = 2) {
    FULMEN_INIT(fulmen_context_options, options);
    options.num_threads = threads;
    if (fulmen_context_create(&options, &context_) != FULMEN_OK)
      throw std::runtime_error(fulmen_last_error());
  }
  ~Context() { fulmen_context_destroy(context_); }
  Context(const Context&) = delete;
  operator fulmen_context*() const { return context_; }

 private:
  fulmen_context* context_ = nullptr;
};

// The SIMD targets that this machine can run, plain code included; SimdTarget makes the library use one of
// them.
inline std::vector<int64_t> simd_targets() { return hwy::SupportedAndGeneratedTargets(); }
class SimdTarget {
 public:
  explicit SimdTarget(int64_t target) { choose(target); }
  ~SimdTarget() { choose(0); }
  SimdTarget(const SimdTarget&) = delete;

 private:
  static void choose(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

#define EXPECT_FULMEN_OK(call) EXPECT_EQ((call), FULMEN_OK) << fulmen_last_error()

// |got - exact| <= 2 max |plain - exact| + floor, where plain is the same formula evaluated plainly in fp32
// and rounded to the output's dtype. floor: one unit in the last place of the largest value. NaN and
// infinities at the same places.
inline void expect_close(Tensor& got, const std::vector<double>& exact, const std::vector<float>& plain,
                         const std::string& what) {
  double worst_plain = 0.0, worst_rounded = 0.0, largest = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    if (!std::isfinite(exact[i])) continue;
    largest = std::max(largest, std::fabs(exact[i]));
    const double p = round_to(got.dtype(), plain[i]);
    if (!std::isfinite(p)) continue;
    worst_plain = std::max(worst_plain, std::fabs(plain[i] - exact[i]));
    worst_rounded = std::max(worst_rounded, std::fabs(p - exact[i]));
  }
  // Which way a result near the middle of two numbers is rounded is luck: half a step is always allowed.
  const double half_step = largest > 0.0 ? std::ldexp(1.0, std::ilogb(largest) - format_of(got.dtype()).digits) : 0.0;
  const double bound = 2.0 * std::max(worst_rounded, worst_plain + 0.5 * half_step) + 1e-7 * largest;
  double worst = 0.0;
  size_t where = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double g = got.get(static_cast<int64_t>(i));
    const double wanted = std::isfinite(exact[i]) ? exact[i] : exact[i];
    ASSERT_EQ(std::isnan(g), std::isnan(wanted))
        << what << ": element " << i << ": got " << g << ", exact " << wanted;
    if (std::isnan(g) || std::fabs(wanted) > format_of(got.dtype()).largest) continue;
    ASSERT_TRUE(std::isfinite(g)) << what << ": element " << i << ": got " << g << ", exact " << wanted;
    if (std::fabs(g - wanted) > worst) worst = std::fabs(g - wanted), where = i;
  }
  EXPECT_LE(worst, bound) << what << ": worst at element " << where << ": got "
                          << got.get(static_cast<int64_t>(where)) << ", exact " << exact[where] << ", plain "
                          << plain[where];
}

}  // namespace testing_ops
