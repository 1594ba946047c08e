// Philox4x32-10: ten rounds of a bijection of the counter under the key; no state, so any draw can be made
// anywhere. Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
#pragma once

#include <kernels/prelude/prelude.hpp>

namespace fulmen {

struct Philox {
  uint32_t x[4];
};

FULMEN_FN Philox philox4x32(Philox counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * counter.x[0];
    const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * counter.x[2];
    const Philox next = {{static_cast<uint32_t>(b >> 32) ^ counter.x[1] ^ key0, static_cast<uint32_t>(b),
                          static_cast<uint32_t>(a >> 32) ^ counter.x[3] ^ key1, static_cast<uint32_t>(a)}};
    counter = next;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// 64 random bits for one draw: key = seed, counter = (offset, row, draw).
FULMEN_FN uint64_t random_bits(uint64_t seed, uint64_t offset, uint32_t row, uint32_t draw) {
  const Philox counter = {{static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32), row, draw}};
  const Philox out = philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return static_cast<uint64_t>(out.x[1]) << 32 | out.x[0];
}

}  // namespace fulmen
