// Attention sinks (Xiao et al., 2023): one more logit per query head in the softmax sum, without a value. It joins
// after the last key, so partial states are free of it. A row that sees no key stays empty.
struct Sinks {
  struct Params {
    const float* sinks;  // [num_qo_heads]
  };
  // Factor on o and the new m and l; m and the sink in units of log2.
  struct Joined {
    float factor, m, l;
  };
  template <class Exp2>
  static FULMEN_FN Joined join(float sink_log2, float m, float l, Exp2 exp2) {
    if (m == -infinity()) return {1.0f, m, l};
    const float top = m < sink_log2 ? sink_log2 : m;
    const float factor = exp2(m - top);
    return {factor, top, fma(l, factor, exp2(sink_log2 - top))};
  }
};
