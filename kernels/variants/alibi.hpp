// Attention with linear biases (Press et al., 2021): s -> s + slope[head] * (key position - row position).
struct Alibi {
  struct Params {
    const float* slopes;  // [num_qo_heads]
  };
  template <class V>
  static FULMEN_FN V logit(const Params& p, const At<V>& at, V s) {
    return s + V(p.slopes[at.qo_head]) * at.distance;
  }
};
