// How many seeds of the emulator's scheduler a test tries.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace fulmen {

inline const bool kThorough = std::getenv("FULMEN_TEST_FULL") != nullptr;

// FULMEN_TEST_SEEDS is how the runner of mutants keeps to few.
inline uint64_t num_seeds(uint64_t usual, uint64_t thorough = 50) {
  if (const char* given = std::getenv("FULMEN_TEST_SEEDS")) return std::strtoull(given, nullptr, 10);
  return kThorough ? thorough : usual;
}
// FULMEN_TEST_SEED: where to begin, so that another run tries others.
inline uint64_t first_seed() {
  const char* given = std::getenv("FULMEN_TEST_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : 1;
}

}  // namespace fulmen
