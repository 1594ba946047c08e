// What a variant may know of the place whose logit it changes. V holds one key (device) or a vector of keys (CPU).
//
// The files of this folder have no include guard and open no namespace: the CPU back end includes them once per SIMD
// target inside that target's namespace, the generated GPU unit once inside namespace fulmen. Functions that they call
// on V (exp2, tanh) are the back end's.
template <class V>
struct At {
  V distance;       // key position - row position, <= 0 under causality
  int32_t qo_head;
};
