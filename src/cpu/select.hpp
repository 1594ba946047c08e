// Selection by radix descent: where does the ranking of some words (descending key, then ascending index)
// reach a count or a mass? No sorting: each round histograms count and mass over the next 10 bits of the keys
// that are still in question.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fulmen::cpu {

// A prefix of the ranking: all keys above `key`, and of those equal to it the first `ties` in index order.
struct Cut {
  uint32_t key = 0;
  int64_t ties = 0;
  int64_t count = 0;  // words of the prefix
  uint64_t mass = 0;  // and their mass
  bool found = false;
};

struct SelectScratch {
  struct Word {
    uint32_t key;
    uint64_t mass;
  };
  std::vector<Word> words, next;
  std::vector<uint32_t> counts;
  std::vector<uint64_t> masses;
};

// The shortest prefix with `count` words (0: no such goal) or with mass `mass` (0: no such goal), whichever
// is shorter. Not found when the words don't reach either goal. masses may be null when mass is 0. All keys
// lie in [low, high].
Cut select_prefix(const uint32_t* keys, const uint64_t* masses, size_t n, uint32_t low, uint32_t high, int64_t count,
                  uint64_t mass, SelectScratch& scratch);

}  // namespace fulmen::cpu
