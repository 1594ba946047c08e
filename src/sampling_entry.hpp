// What softmax, sample and filter check alike.
#pragma once

#include <cmath>
#include <kernels/math/mass.hpp>
#include <kernels/sampling/sampling.params.hpp>

#include "entry.hpp"

namespace fulmen {

// Rows of words; masses of a row fit 64 bits up to kMaxVocab words.
inline int32_t checked_vocab(const char* op, const char* name, const fulmen_tensor& t, int64_t vocab,
                             int64_t num_rows) {
  require(vocab <= kMaxVocab && (vocab > 0 || num_rows == 0),
          "{}: {}: expected 1 to {} words per row, found {}", op, name, kMaxVocab, shape_text(t));
  return static_cast<int32_t>(vocab);
}

// Logits in any dtype, or fp32 probabilities.
inline void check_words(const char* op, const fulmen_tensor& t, bool is_probs, Dim num_rows, Dim vocab,
                        const fulmen_context& context) {
  check_rows(op, "input", t, is_probs ? std::initializer_list<int32_t>{FULMEN_F32} : kFloatDtypes, num_rows, vocab, context);
}

template <class T>
const T* row_values(const char* op, const char* name, const fulmen_tensor& t, Sym& num_rows, int32_t dtype,
                    const fulmen_context& context) {
  if (!present(t)) return nullptr;
  check_vector(op, name, t, num_rows, {dtype}, context);
  return static_cast<const T*>(t.data);
}

inline FilterParams filter_params(const char* op, const fulmen_filter_params& f, Sym& num_rows,
                                  bool input_is_probs, const fulmen_context& context) {
  FilterParams p{};
  p.temperatures =
      row_values<float>(op, "filter.temperatures", f.temperatures, num_rows, FULMEN_F32, context);
  p.top_ks = row_values<int32_t>(op, "filter.top_ks", f.top_ks, num_rows, FULMEN_I32, context);
  p.top_ps = row_values<float>(op, "filter.top_ps", f.top_ps, num_rows, FULMEN_F32, context);
  p.min_ps = row_values<float>(op, "filter.min_ps", f.min_ps, num_rows, FULMEN_F32, context);
  if (p.temperatures == nullptr && !input_is_probs) {
    require(f.temperature >= 0.0f && std::isfinite(f.temperature),
            "{}: filter.temperature: expected a finite number of at least 0, found {}", op, f.temperature);
  }
  if (p.top_ps == nullptr)
    require(f.top_p >= 0.0f, "{}: filter.top_p: expected at least 0, found {}", op, f.top_p);
  if (p.min_ps == nullptr)
    require(f.min_p <= 1.0f, "{}: filter.min_p: expected at most 1, found {}", op, f.min_p);
  require(f.order == FULMEN_FILTER_SEQUENTIAL || f.order == FULMEN_FILTER_JOINT,
          "{}: filter.order: expected a fulmen_filter_order, found {}", op, f.order);
  p.temperature = f.temperature;
  p.top_k = f.top_k;
  p.top_p = f.top_p;
  p.min_p = f.min_p;
  p.joint = f.order == FULMEN_FILTER_JOINT;
  return p;
}

}  // namespace fulmen
