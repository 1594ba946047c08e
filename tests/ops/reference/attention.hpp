// Attention in fp64, written as the formula reads; shares no code with any back end. A problem here is flat: each
// request has its own gathered keys and values, so paging, levels and strides are the business of whoever builds both.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace reference {

struct AttentionProblem {
  int qo_len = 0, kv_len = 0, qo_heads = 1, kv_heads = 1, qk_dim = 8, vo_dim = 8;
  std::vector<double> q, k, v;  // [qo_len, qo_heads, qk_dim], [kv_len, kv_heads, qk_dim], [kv_len, kv_heads, vo_dim]
  double scale = 1.0;
  bool causal = false;
  int window_left = -1;
  double soft_cap = 0.0;                       // 0: none
  std::vector<double> slopes, sinks;           // [qo_heads], empty: none
  std::function<bool(int row, int key)> mask;  // empty: all visible
  bool softmax = true;
};

struct AttentionResult {
  std::vector<double> o, lse;  // [qo_len, qo_heads, vo_dim], [qo_len, qo_heads]
  std::vector<double> o_abs;   // sum of |weight * value|: the scale that rounding errors of o are measured by
};

inline bool visible(const AttentionProblem& p, int row, int key) {
  const int position = p.kv_len - p.qo_len + row;
  if (p.causal && key > position) return false;
  if (p.window_left >= 0 && key < position - p.window_left) return false;
  return !p.mask || p.mask(row, key);
}

inline double logit(const AttentionProblem& p, int row, int head, int key) {
  const int kv_head = head / (p.qo_heads / p.kv_heads);
  double s = 0.0;
  for (int d = 0; d < p.qk_dim; ++d) {
    s += p.q[(static_cast<size_t>(row) * p.qo_heads + head) * p.qk_dim + d] *
         p.k[(static_cast<size_t>(key) * p.kv_heads + kv_head) * p.qk_dim + d];
  }
  s *= p.scale;
  if (p.soft_cap > 0.0) s = p.soft_cap * std::tanh(s / p.soft_cap);
  if (!p.slopes.empty()) s += p.slopes[head] * (key - (p.kv_len - p.qo_len + row));
  return s;
}

inline AttentionResult attention(const AttentionProblem& p) {
  AttentionResult out;
  out.o.assign(static_cast<size_t>(p.qo_len) * p.qo_heads * p.vo_dim, 0.0);
  out.o_abs = out.o;
  out.lse.assign(static_cast<size_t>(p.qo_len) * p.qo_heads, -std::numeric_limits<double>::infinity());
  for (int row = 0; row < p.qo_len; ++row) {
    for (int head = 0; head < p.qo_heads; ++head) {
      const int kv_head = head / (p.qo_heads / p.kv_heads);
      std::vector<int> keys;
      std::vector<double> weights;
      double top = -std::numeric_limits<double>::infinity();
      for (int key = 0; key < p.kv_len; ++key) {
        if (!visible(p, row, key)) continue;
        keys.push_back(key);
        weights.push_back(logit(p, row, head, key));
        top = std::fmax(top, weights.back());
      }
      if (keys.empty()) continue;
      double sum = 1.0;
      if (p.softmax) {
        sum = 0.0;
        if (!p.sinks.empty()) {
          top = std::fmax(top, p.sinks[head]);
          sum = std::exp(p.sinks[head] - top);
        }
        for (double& w : weights) sum += (w = std::exp(w - top));
        out.lse[static_cast<size_t>(row) * p.qo_heads + head] = top + std::log(sum);
      }
      for (size_t i = 0; i < keys.size(); ++i) {
        for (int d = 0; d < p.vo_dim; ++d) {
          const double x = weights[i] / sum * p.v[(static_cast<size_t>(keys[i]) * p.kv_heads + kv_head) * p.vo_dim + d];
          out.o[(static_cast<size_t>(row) * p.qo_heads + head) * p.vo_dim + d] += x;
          out.o_abs[(static_cast<size_t>(row) * p.qo_heads + head) * p.vo_dim + d] += std::fabs(x);
        }
      }
    }
  }
  return out;
}

}  // namespace reference
