#include "emulator/matrix.hpp"

#include <algorithm>
#include <stdexcept>

#include "emulator/instructions.hpp"

namespace fulmen::emulator {

int matrix_model = kHopper;

namespace {

#if defined(__x86_64__)
#define FULMEN_VECTORISED __attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3")))
#else
#define FULMEN_VECTORISED
#endif

enum Class : uint8_t { kFinite = 0, kInfinite = 1, kNan = 2 };

constexpr int kM = 16, kN = 8, kK = 16;

// Values as significand * 2^(exponent - fraction bits of the format).
struct Operands {
  alignas(64) int32_t a_significand[kM][kK], a_exponent[kM][kK];
  alignas(64) int32_t b_significand[kK][kN], b_exponent[kK][kN];
};

Class classify(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const uint32_t top = (1u << exponent_bits) - 1;
  if (((bits >> mantissa_bits) & top) != top) return kFinite;
  return (bits & ((1u << mantissa_bits) - 1)) != 0 ? kNan : kInfinite;
}

// True if some value isn't finite.
FULMEN_VECTORISED
bool decode(const uint16_t* bits, int count, int exponent_bits, int mantissa_bits, int32_t* significand, int32_t* exponent) {
  const int32_t top = (1 << exponent_bits) - 1, bias = (1 << (exponent_bits - 1)) - 1;
  const int32_t fraction_mask = (1 << mantissa_bits) - 1;
  int32_t special = 0;
  for (int i = 0; i < count; ++i) {
    const int32_t x = bits[i];
    const int32_t field = (x >> mantissa_bits) & top;
    const int32_t normal = field != 0 ? 1 : 0;
    const int32_t magnitude = (x & fraction_mask) | (normal << mantissa_bits);
    significand[i] = (x & 0x8000) != 0 ? -magnitude : magnitude;
    exponent[i] = field + 1 - normal - bias;
    special |= field == top ? 1 : 0;
  }
  return special != 0;
}

using Ints = int32_t __attribute__((vector_size(4 * kN)));
using Unsigneds = uint32_t __attribute__((vector_size(4 * kN)));

// One step of one row: `terms` products from `first` on are added to c[0, kN). True if some c isn't finite (then the
// result means nothing).
FULMEN_VECTORISED
bool step_row(const Operands& in, int row, int first, int terms, int product_fraction, int fraction_bits, const float* c, float* d) {
  constexpr int32_t kNoExponent = -100000;
  alignas(64) int32_t top[kN], c_significand[kN], c_exponent[kN];
  int32_t special = 0;
  for (int j = 0; j < kN; ++j) {
    const auto x = static_cast<int32_t>(float_bits(c[j]));
    const int32_t field = (x >> 23) & 0xff;
    const int32_t normal = field != 0 ? 1 : 0;
    const int32_t magnitude = (x & 0x7fffff) | (normal << 23);
    c_significand[j] = x < 0 ? -magnitude : magnitude;
    c_exponent[j] = field + 1 - normal - 127;
    special |= field == 255 ? 1 : 0;
    top[j] = c_exponent[j];  // a zero counts as 2^-126
  }
  Ints tops = *reinterpret_cast<const Ints*>(top);
  for (int k = first; k < first + terms; ++k) {
    const Ints b_exponent = *reinterpret_cast<const Ints*>(in.b_exponent[k]), b_significand = *reinterpret_cast<const Ints*>(in.b_significand[k]);
    const Ints e = (in.a_significand[row][k] * b_significand != 0) ? in.a_exponent[row][k] + b_exponent : kNoExponent - (b_exponent ^ b_exponent);
    tops = e > tops ? e : tops;
  }
  *reinterpret_cast<Ints*>(top) = tops;
  // A term in units of 2^(top - fraction_bits): left by what the format leaves free, right by its distance, cut toward zero.
  // A product is below 2^(fraction_bits + 2) of them, so eight fit an int32_t.
  Ints half[2] = {};
  const int32_t room = fraction_bits - product_fraction;
  for (int k = first; k < first + terms; ++k) {
    const Ints b_exponent = *reinterpret_cast<const Ints*>(in.b_exponent[k]), b_significand = *reinterpret_cast<const Ints*>(in.b_significand[k]);
    const Ints product = in.a_significand[row][k] * b_significand;
    Ints distance = tops - (in.a_exponent[row][k] + b_exponent);
    distance = distance > 31 ? (distance ^ distance) + 31 : distance;
    distance = distance < 0 ? distance ^ distance : distance;  // of zeros, whose exponents don't count
    const Ints negative = product >> 31;
    const Ints magnitude = (product ^ negative) - negative;
    const Ints cut = reinterpret_cast<Ints>((reinterpret_cast<Unsigneds>(magnitude) << static_cast<uint32_t>(room)) >> reinterpret_cast<Unsigneds>(distance));
    half[(k - first) & 1] += (cut ^ negative) - negative;
  }
  for (int j = 0; j < kN; ++j) {
    int32_t distance = top[j] - c_exponent[j];
    distance = distance > 31 ? 31 : distance;
    const int32_t magnitude = c_significand[j] < 0 ? -c_significand[j] : c_significand[j];
    const auto cut = static_cast<int32_t>((static_cast<uint32_t>(magnitude) << (fraction_bits - 23)) >> distance);
    // Exact in double; then cut to fp32's 24 bits, or where it is subnormal to its last one.
    const double unit = __builtin_bit_cast(double, static_cast<int64_t>(top[j] - fraction_bits + 1023) << 52);
    const double sum = (static_cast<double>(half[0][j]) + static_cast<double>(half[1][j]) + static_cast<double>(c_significand[j] < 0 ? -cut : cut)) * unit;
    const double normal = __builtin_bit_cast(double, __builtin_bit_cast(int64_t, sum) & ~((int64_t{1} << 29) - 1));
    const double absolute = __builtin_fabs(sum);
    // Adding 2^52 times the last bit rounds to it, to nearest; one too many is taken back.
    const double last = 0x1p-149, shift = 0x1p52 * last;
    double low = (absolute + shift) - shift;
    low = low > absolute ? low - last : low;
    const double subnormal = sum < 0 ? -low : low;
    d[j] = static_cast<float>(absolute < 0x1p-126 ? subnormal : normal);
  }
  return special != 0;
}

// The same step where something isn't finite, one element: infinities and NaN by the rules of IEEE sums; the NaN is the canonical
// one. False: everything that enters this element is finite.
bool special_element(const uint16_t* a, const uint16_t* b, int terms, float c, int exponent_bits, int mantissa_bits, float* d) {
  const Class c_class = classify(float_bits(c), 8, 23);
  bool nan = c_class == kNan, plus = c_class == kInfinite && c > 0, minus = c_class == kInfinite && c < 0;
  for (int k = 0; k < terms; ++k) {
    const Class x = classify(a[k], exponent_bits, mantissa_bits), y = classify(b[k], exponent_bits, mantissa_bits);
    if (x == kFinite && y == kFinite) continue;
    const bool zero = (a[k] & 0x7fffu) == 0 || (b[k] & 0x7fffu) == 0;
    if (x == kNan || y == kNan || zero) {
      nan = true;
    } else {
      (((a[k] ^ b[k]) & 0x8000u) != 0 ? minus : plus) = true;
    }
  }
  if (nan || (plus && minus)) {
    *d = bits_float(0x7fffffffu);
  } else if (plus || minus) {
    *d = plus ? infinity() : -infinity();
  } else {
    return false;
  }
  return true;
}

void multiply_add_16bit(const MatrixModel& model, int exponent_bits, int mantissa_bits, const uint16_t* a, const uint16_t* b, float* c) {
  Operands in;
  uint16_t b_rows[kK][kN];
  for (int j = 0; j < kN; ++j) {
    for (int k = 0; k < kK; ++k) b_rows[k][j] = b[j * kK + k];
  }
  bool special = decode(&b_rows[0][0], kK * kN, exponent_bits, mantissa_bits, &in.b_significand[0][0], &in.b_exponent[0][0]);
  special |= decode(a, kM * kK, exponent_bits, mantissa_bits, &in.a_significand[0][0], &in.a_exponent[0][0]);
  for (int i = 0; i < kM; ++i) {
    float* row = c + i * kN;
    for (int first = 0; first < kK; first += model.terms) {
      const int terms = std::min(model.terms, kK - first);
      float d[kN];
      const bool c_special = step_row(in, i, first, terms, 2 * mantissa_bits, model.fraction_bits, row, d);
      if (special || c_special) {
        for (int j = 0; j < kN; ++j) special_element(a + i * kK + first, b + j * kK + first, terms, row[j], exponent_bits, mantissa_bits, &d[j]);
      }
      std::copy(d, d + kN, row);
    }
  }
}

}  // namespace

void multiply_add(const MatrixModel& model, DType type, int m, int n, int k, const uint16_t* a, const uint16_t* b, float* c) {
  if (m != kM || n != kN || k != kK) throw std::logic_error("matrix unit: the shape m16n8k16");
  if (type == DType::bf16) {
    multiply_add_16bit(model, 8, 7, a, b, c);
  } else {
    multiply_add_16bit(model, 5, 10, a, b, c);
  }
}

void matrix_multiply_add(DType type, int m, int n, int k, const uint16_t* a, const uint16_t* b, float* c) {
  multiply_add(kMatrixModels[matrix_model], type, m, n, k, a, b, c);
}

}  // namespace fulmen::emulator
