// Caps the logit smoothly at +-cap: s -> cap tanh(s / cap).
struct SoftCap {
  struct Params {
    float cap, inverse;  // inverse = 1 / cap
  };
  template <class V>
  static FULMEN_FN V logit(const Params& p, const At<V>&, V s) {
    return V(p.cap) * tanh(s * V(p.inverse));
  }
};
