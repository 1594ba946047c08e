// A bit per (row, key), 1 = visible, on top of causality and window. Little-endian bits; request r's row-major
// [qo_len, kv_len] bits start at byte mask_indptr[r].
struct CustomMask {
  // Bits of keys first .. first + 63 of a row whose key 0 is bit row_bit; bits from `end` on don't exist and read as 0.
  static FULMEN_FN uint64_t word(const uint8_t* mask, int64_t row_bit, int64_t first, int64_t end) {
    const int64_t bit = row_bit + first;
    if (bit >= end) return 0;
    const int64_t byte = bit >> 3;
    const int64_t bytes = (end + 7) >> 3;
    const int32_t shift = static_cast<int32_t>(bit & 7);
    uint64_t low = 0;
    for (int32_t i = 0; i < 8; ++i) {
      if (byte + i < bytes) low |= static_cast<uint64_t>(mask[byte + i]) << (8 * i);
    }
    uint64_t word = low >> shift;
    if (shift > 0 && byte + 8 < bytes) word |= static_cast<uint64_t>(mask[byte + 8]) << (64 - shift);
    return end - bit >= 64 ? word : word & ((static_cast<uint64_t>(1) << (end - bit)) - 1);
  }
};
