// Rotary embedding of q and k on the fly: a pair (a, b) of a head turns by its position. Angles: math/rotation.hpp.
struct Rope {
  // Dims of pair i.
  static FULMEN_FN int32_t first_dim(int32_t i, int32_t, bool interleaved) { return interleaved ? 2 * i : i; }
  static FULMEN_FN int32_t second_dim(int32_t i, int32_t rotary_dim, bool interleaved) {
    return interleaved ? 2 * i + 1 : i + rotary_dim / 2;
  }
  template <class V>
  static FULMEN_FN void rotate(V& a, V& b, V cos, V sin) {
    const V x = a * cos - b * sin;
    b = b * cos + a * sin;
    a = x;
  }
};
