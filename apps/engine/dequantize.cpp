#include "engine/dequantize.hpp"

#include <fmt/format.h>

#include <bit>
#include <cstddef>
#include <cstring>
#include <stdexcept>

// Loops here have fixed lengths and no branches, so that the compiler turns them into vectors at -O2.

namespace fulmen::engine {
namespace {

constexpr int kRun = 32;  // elements handled at a time: a quantised block

inline float widen_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  // Half's exponent read as float's is 112 too small; the product also normalises subnormals.
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t special = magnitude | 0x7f800000u;  // infinity, NaN
  const uint32_t bits = magnitude >= (0x7c00u << 13) ? special : std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(bits | sign);
}

inline uint16_t narrow_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits & 0x80000000u;
  const auto magnitude = static_cast<int32_t>(bits & 0x7fffffffu);  // signed: SSE2 compares no unsigned words
  // Normal: rebias the exponent by 112, round the 13 bits that go to nearest even.
  const int32_t normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal: the sum with 0.5 has half's smallest step, 2^-24, as its last bit and rounds as it should.
  const float half_sum = std::bit_cast<float>(magnitude) + 0.5f;
  const int32_t subnormal = std::bit_cast<int32_t>(half_sum) - std::bit_cast<int32_t>(0.5f);
  int32_t out = magnitude < 0x38800000 ? subnormal : normal;  // 2^-14
  out = magnitude >= 0x477ff000 ? 0x7c00 : out;               // 65520 rounds to infinity
  out = magnitude > 0x7f800000 ? 0x7e00 : out;
  return static_cast<uint16_t>(static_cast<uint32_t>(out) | (sign >> 16));
}

template <class T>
inline T load(const std::byte* bytes) {
  T out;
  std::memcpy(&out, bytes, sizeof(T));
  return out;
}

/// One run of kRun elements of each format, from its bytes.
struct F32 {
  static constexpr int kBytes = 4 * kRun;
  static void run(const std::byte* in, float* out) { std::memcpy(out, in, kBytes); }
};

struct F16 {
  static constexpr int kBytes = 2 * kRun;
  static void run(const std::byte* in, float* out) {
    uint16_t half[kRun];
    std::memcpy(half, in, sizeof(half));
    for (int i = 0; i < kRun; ++i) out[i] = widen_half(half[i]);
  }
};

struct BF16 {
  static constexpr int kBytes = 2 * kRun;
  static void run(const std::byte* in, float* out) {
    uint16_t word[kRun];
    std::memcpy(word, in, sizeof(word));
    for (int i = 0; i < kRun; ++i) out[i] = std::bit_cast<float>(static_cast<uint32_t>(word[i]) << 16);
  }
};

/// scale f16 | 32 signed bytes: scale * q
struct Q8_0 {
  static constexpr int kBytes = 34;
  static void run(const std::byte* in, float* out) {
    const float scale = widen_half(load<uint16_t>(in));
    int8_t q[kRun];
    std::memcpy(q, in + 2, sizeof(q));
    for (int i = 0; i < kRun; ++i) out[i] = scale * static_cast<float>(q[i]);
  }
};

/// scale f16 | 16 bytes, element i in the low and element 16 + i in the high half of byte i: scale * (q - 8)
struct Q4_0 {
  static constexpr int kBytes = 18;
  static void run(const std::byte* in, float* out) {
    const float scale = widen_half(load<uint16_t>(in));
    uint8_t q[kRun / 2];
    std::memcpy(q, in + 2, sizeof(q));
    for (int i = 0; i < kRun / 2; ++i) out[i] = static_cast<float>((q[i] & 15) - 8) * scale;
    for (int i = 0; i < kRun / 2; ++i) out[kRun / 2 + i] = static_cast<float>((q[i] >> 4) - 8) * scale;
  }
};

/// scale f16 | minimum f16 | 16 bytes as in Q4_0: scale * q + minimum
struct Q4_1 {
  static constexpr int kBytes = 20;
  static void run(const std::byte* in, float* out) {
    const float scale = widen_half(load<uint16_t>(in));
    const float minimum = widen_half(load<uint16_t>(in + 2));
    uint8_t q[kRun / 2];
    std::memcpy(q, in + 4, sizeof(q));
    for (int i = 0; i < kRun / 2; ++i) out[i] = static_cast<float>(q[i] & 15) * scale + minimum;
    for (int i = 0; i < kRun / 2; ++i) out[kRun / 2 + i] = static_cast<float>(q[i] >> 4) * scale + minimum;
  }
};

/// Calls use(values, count) for each run of the bytes; the last may be short in the formats without blocks.
template <class Format, class Use>
void for_each_run(const std::byte* in, int64_t elements, Use&& use) {
  float values[kRun];
  int64_t done = 0;
  for (; done + kRun <= elements; done += kRun, in += Format::kBytes) {
    Format::run(in, values);
    use(values, kRun);
  }
  if (done < elements) {
    const auto rest = static_cast<int>(elements - done);
    std::byte padded[Format::kBytes] = {};
    std::memcpy(padded, in, static_cast<size_t>(Format::kBytes / kRun * rest));
    Format::run(padded, values);
    use(values, rest);
  }
}

template <class Use>
void for_each_run(const GgufTensor& tensor, int64_t first_row, int64_t num_rows, Use&& use) {
  if (first_row < 0 || num_rows < 0 || first_row > tensor.num_rows() - num_rows) {
    throw std::out_of_range(fmt::format("tensor {}: expected rows within [0, {}), found [{}, {} + {})",
                                        tensor.name, tensor.num_rows(), first_row, first_row, num_rows));
  }
  const GgufBlock block = dtype_block(tensor.dtype);
  const int64_t row_bytes = tensor.row_elements() / block.elements * block.bytes;
  const std::byte* in = tensor.data.data() + first_row * row_bytes;
  const int64_t elements = num_rows * tensor.row_elements();
  switch (tensor.dtype) {
    case GgufDtype::f32:
      return for_each_run<F32>(in, elements, use);
    case GgufDtype::f16:
      return for_each_run<F16>(in, elements, use);
    case GgufDtype::bf16:
      return for_each_run<BF16>(in, elements, use);
    case GgufDtype::q4_0:
      return for_each_run<Q4_0>(in, elements, use);
    case GgufDtype::q4_1:
      return for_each_run<Q4_1>(in, elements, use);
    case GgufDtype::q8_0:
      return for_each_run<Q8_0>(in, elements, use);
  }
}

}  // namespace

void dequantize_to_float(const GgufTensor& tensor, int64_t first_row, int64_t num_rows, float* out) {
  for_each_run(tensor, first_row, num_rows, [&](const float* values, int count) {
    std::memcpy(out, values, static_cast<size_t>(count) * sizeof(float));
    out += count;
  });
}

bool dequantize_to_half(const GgufTensor& tensor, int64_t first_row, int64_t num_rows, uint16_t* out) {
  uint32_t not_finite = 0;
  for_each_run(tensor, first_row, num_rows, [&](const float* values, int count) {
    uint16_t half[kRun];
    for (int i = 0; i < kRun; ++i) half[i] = narrow_half(values[i]);
    for (int i = 0; i < kRun; ++i) not_finite |= (half[i] & 0x7c00u) == 0x7c00u;
    std::memcpy(out, half, static_cast<size_t>(count) * sizeof(uint16_t));
    out += count;
  });
  return not_finite == 0;
}

float half_to_float(uint16_t half) { return widen_half(half); }
uint16_t float_to_half(float value) { return narrow_half(value); }

}  // namespace fulmen::engine
