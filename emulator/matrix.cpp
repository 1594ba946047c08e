#include "emulator/matrix.hpp"

#include <algorithm>
#include <bit>

namespace fulmen::emulator {

int matrix_model = kHopper;

namespace {

enum Class : uint8_t { kFinite = 0, kInfinite = 1, kNan = 2 };

// A value is significand * 2^(exponent - fraction bits of its format).
template <int kExponentBits, int kMantissaBits> Class decode(uint16_t bits, int32_t& significand, int32_t& exponent) {
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1, kTop = (1 << kExponentBits) - 1;
  const int field = (bits >> kMantissaBits) & kTop;
  const int fraction = bits & ((1 << kMantissaBits) - 1);
  const int magnitude = field != 0 ? fraction | (1 << kMantissaBits) : fraction;
  significand = (bits & 0x8000u) != 0 ? -magnitude : magnitude;
  exponent = (field != 0 ? field : 1) - kBias;
  if (field == kTop) return fraction != 0 ? kNan : kInfinite;
  return kFinite;
}

constexpr int kNoExponent = -100000;

// Cut toward zero to fp32. `sum` counts units of 2^unit.
float cut_to_float(int64_t sum, int unit) {
  if (sum == 0) return 0.0f;
  const bool negative = sum < 0;
  uint64_t magnitude = negative ? 0 - static_cast<uint64_t>(sum) : static_cast<uint64_t>(sum);
  int exponent = 63 - std::countl_zero(magnitude) + unit;  // of the leading bit
  const int lowest = std::max(exponent, -126) - 23;        // exponent of the last bit kept
  const int drop = lowest - unit;
  magnitude = drop >= 64 ? 0 : drop >= 0 ? magnitude >> drop : magnitude << -drop;
  uint32_t bits;
  if (exponent > 127) {
    bits = 0x7f800000u;
  } else if (magnitude < (1u << 23)) {
    bits = static_cast<uint32_t>(magnitude);  // subnormal or zero
  } else {
    bits = (static_cast<uint32_t>(exponent + 127) << 23) | (static_cast<uint32_t>(magnitude) & 0x7fffffu);
  }
  return bits_float(bits | (negative ? 0x80000000u : 0u));
}

constexpr int kMaxN = 8, kMaxK = 16;

// One row of the result. Column-major inner loops over n, which the compiler turns into SIMD.
struct Columns {
  alignas(64) int32_t significand[kMaxK][kMaxN];
  alignas(64) int32_t exponent[kMaxK][kMaxN];
};

#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3")))
#endif
void step_row(const int32_t* a_significand, const int32_t* a_exponent, const Columns& b, int first, int terms,
              int product_fraction, int fraction_bits, const int32_t* c_significand, const int32_t* c_exponent,
              int32_t* max_exponent, int64_t* sum) {
  alignas(64) int32_t top[kMaxN];
  alignas(64) int32_t half[2][kMaxN] = {};
  for (int j = 0; j < kMaxN; ++j) top[j] = c_exponent[j];  // a zero counts as 2^-126
  for (int k = first; k < first + terms; ++k) {
    const int32_t ea = a_exponent[k], sa = a_significand[k];
    for (int j = 0; j < kMaxN; ++j) {
      const int32_t e = sa * b.significand[k][j] != 0 ? ea + b.exponent[k][j] : kNoExponent;
      top[j] = e > top[j] ? e : top[j];
    }
  }
  // A term in units of 2^(top - fraction_bits): left by what the format leaves free, right by its distance, cut toward zero.
  const int32_t room = fraction_bits - product_fraction;
  for (int k = first; k < first + terms; ++k) {
    const int32_t ea = a_exponent[k], sa = a_significand[k];
    int32_t* into = half[(k - first) & 1];
    for (int j = 0; j < kMaxN; ++j) {
      const int32_t product = sa * b.significand[k][j];
      int32_t distance = top[j] - (ea + b.exponent[k][j]);
      distance = distance > 31 ? 31 : distance < 0 ? 0 : distance;
      const int32_t magnitude = product < 0 ? -product : product;
      const int32_t cut = static_cast<int32_t>((static_cast<uint32_t>(magnitude) << room) >> distance);
      into[j] += product < 0 ? -cut : cut;
    }
  }
  for (int j = 0; j < kMaxN; ++j) {
    int32_t distance = top[j] - c_exponent[j];
    distance = distance > 31 ? 31 : distance < 0 ? 0 : distance;
    const int32_t magnitude = c_significand[j] < 0 ? -c_significand[j] : c_significand[j];
    const int32_t cut = static_cast<int32_t>((static_cast<uint32_t>(magnitude) << (fraction_bits - 23)) >> distance);
    sum[j] = static_cast<int64_t>(half[0][j]) + half[1][j] + (c_significand[j] < 0 ? -cut : cut);
    max_exponent[j] = top[j];
  }
}

Class decode_float(float x, int32_t& significand, int32_t& exponent) {
  const uint32_t bits = float_bits(x);
  const int field = static_cast<int>((bits >> 23) & 0xff);
  const int32_t fraction = static_cast<int32_t>(bits & 0x7fffffu);
  const int32_t magnitude = field != 0 ? fraction | (1 << 23) : fraction;
  significand = (bits >> 31) != 0 ? -magnitude : magnitude;
  exponent = (field != 0 ? field : 1) - 127;
  if (field == 255) return fraction != 0 ? kNan : kInfinite;
  return kFinite;
}

template <int kExponentBits, int kMantissaBits>
void multiply_add_16bit(const MatrixModel& model, int m, int n, int k, const uint16_t* a, const uint16_t* b, float* c) {
  Columns columns;
  Class b_class[kMaxK][kMaxN];
  bool special = false;
  for (int j = 0; j < n; ++j) {
    for (int p = 0; p < k; ++p) {
      b_class[p][j] = decode<kExponentBits, kMantissaBits>(b[j * k + p], columns.significand[p][j], columns.exponent[p][j]);
      special |= b_class[p][j] != kFinite;
    }
  }
  for (int i = 0; i < m; ++i) {
    alignas(64) int32_t a_significand[kMaxK], a_exponent[kMaxK];
    Class a_class[kMaxK];
    bool row_special = special;
    for (int p = 0; p < k; ++p) {
      a_class[p] = decode<kExponentBits, kMantissaBits>(a[i * k + p], a_significand[p], a_exponent[p]);
      row_special |= a_class[p] != kFinite;
    }
    float* row = c + i * n;
    for (int first = 0; first < k; first += model.terms) {
      const int terms = std::min(model.terms, k - first);
      alignas(64) int32_t c_significand[kMaxN], c_exponent[kMaxN], top[kMaxN];
      alignas(64) int64_t sum[kMaxN];
      Class c_class[kMaxN];
      bool any = row_special;
      for (int j = 0; j < n; ++j) {
        c_class[j] = decode_float(row[j], c_significand[j], c_exponent[j]);
        any |= c_class[j] != kFinite;
      }
      step_row(a_significand, a_exponent, columns, first, terms, 2 * kMantissaBits, model.fraction_bits, c_significand,
               c_exponent, top, sum);
      for (int j = 0; j < n; ++j) {
        if (any) {
          // Infinities and NaN by the rules of IEEE sums; the NaN is the canonical one.
          bool nan = c_class[j] == kNan, plus = false, minus = false;
          if (c_class[j] == kInfinite) (row[j] > 0 ? plus : minus) = true;
          for (int p = first; p < first + terms; ++p) {
            const Class x = a_class[p], y = b_class[p][j];
            if (x == kFinite && y == kFinite) continue;
            const bool zero = (x == kFinite && a_significand[p] == 0) || (y == kFinite && columns.significand[p][j] == 0);
            if (x == kNan || y == kNan || zero) {
              nan = true;
            } else {
              const bool negative = ((a[i * k + p] ^ b[j * k + p]) & 0x8000u) != 0;
              (negative ? minus : plus) = true;
            }
          }
          if (nan || (plus && minus)) {
            row[j] = bits_float(0x7fffffffu);
            continue;
          }
          if (plus || minus) {
            row[j] = plus ? infinity() : -infinity();
            continue;
          }
        }
        row[j] = cut_to_float(sum[j], top[j] - model.fraction_bits);
      }
    }
  }
}

}  // namespace

void multiply_add(const MatrixModel& model, DType type, int m, int n, int k, const uint16_t* a, const uint16_t* b, float* c) {
  if (type == DType::bf16) {
    multiply_add_16bit<8, 7>(model, m, n, k, a, b, c);
  } else {
    multiply_add_16bit<5, 10>(model, m, n, k, a, b, c);
  }
}

}  // namespace fulmen::emulator
