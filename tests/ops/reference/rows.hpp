// The row-wise ops, plainly, on any floating type: double is the reference, float the plain evaluation in the
// same precision that bounds the allowed error.
#pragma once

#include <cmath>
#include <vector>

namespace reference {

template <class F>
std::vector<F> rms_norm(const std::vector<double>& x, const std::vector<double>& weight, F eps,
                        F weight_offset) {
  const size_t n = weight.size();
  std::vector<F> out(x.size());
  for (size_t row = 0; row < x.size() / n; ++row) {
    F sum = 0;
    for (size_t i = 0; i < n; ++i) sum += static_cast<F>(x[row * n + i]) * static_cast<F>(x[row * n + i]);
    const F rms = std::sqrt(sum / static_cast<F>(n) + eps);
    for (size_t i = 0; i < n; ++i) {
      out[row * n + i] = static_cast<F>(x[row * n + i]) / rms * (static_cast<F>(weight[i]) + weight_offset);
    }
  }
  return out;
}

template <class F>
std::vector<F> layer_norm(const std::vector<double>& x, const std::vector<double>& weight,
                          const std::vector<double>& bias, F eps) {
  const size_t n = weight.size();
  std::vector<F> out(x.size());
  for (size_t row = 0; row < x.size() / n; ++row) {
    F sum = 0;
    for (size_t i = 0; i < n; ++i) sum += static_cast<F>(x[row * n + i]);
    const F mean = sum / static_cast<F>(n);
    F squares = 0;
    for (size_t i = 0; i < n; ++i) {
      const F c = static_cast<F>(x[row * n + i]) - mean;
      squares += c * c;
    }
    const F deviation = std::sqrt(squares / static_cast<F>(n) + eps);
    for (size_t i = 0; i < n; ++i) {
      out[row * n + i] = (static_cast<F>(x[row * n + i]) - mean) / deviation * static_cast<F>(weight[i]) +
                         (bias.empty() ? F(0) : static_cast<F>(bias[i]));
    }
  }
  return out;
}

enum class Gate { silu, gelu, gelu_tanh };

template <class F>
F gate(Gate kind, F x) {
  if (kind == Gate::silu) return x / (F(1) + std::exp(-x));
  if (kind == Gate::gelu) return F(0.5) * x * (F(1) + std::erf(x / std::sqrt(F(2))));
  const F u = std::sqrt(F(2) / F(M_PI)) * (x + F(0.044715) * x * x * x);
  return F(0.5) * x * (F(1) + std::tanh(u));
}

template <class F>
std::vector<F> act_and_mul(const std::vector<double>& x, size_t width, Gate kind) {
  std::vector<F> out(x.size() / 2);
  for (size_t row = 0; row < x.size() / (2 * width); ++row) {
    for (size_t i = 0; i < width; ++i) {
      const F a = static_cast<F>(x[row * 2 * width + i]), b = static_cast<F>(x[row * 2 * width + width + i]);
      out[row * width + i] = gate(kind, a) * b;
    }
  }
  return out;
}

template <class F>
std::vector<F> softmax(const std::vector<double>& x, size_t n, const std::vector<double>& temperature) {
  std::vector<F> out(x.size());
  for (size_t row = 0; row < x.size() / n; ++row) {
    F top = static_cast<F>(x[row * n]);
    for (size_t i = 0; i < n; ++i) top = std::max(top, static_cast<F>(x[row * n + i]));
    F sum = 0;
    for (size_t i = 0; i < n; ++i) {
      out[row * n + i] = std::exp((static_cast<F>(x[row * n + i]) - top) / static_cast<F>(temperature[row]));
      sum += out[row * n + i];
    }
    for (size_t i = 0; i < n; ++i) out[row * n + i] /= sum;
  }
  return out;
}

}  // namespace reference
