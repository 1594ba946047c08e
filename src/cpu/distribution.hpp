// Working memory of the passes over one row; each thread keeps its own and lets it grow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/select.hpp"

namespace fulmen::cpu {

constexpr size_t kBlock = 256;  // words: small enough that the k-th largest block maximum is a tight bound

// Some words of a row, in index order.
struct Words {
  std::vector<float> values;
  std::vector<int32_t> indices;
  std::vector<uint32_t> keys;
  std::vector<uint64_t> masses;
  size_t n = 0;

  void reserve(size_t size) {
    if (values.size() >= size) return;
    values.resize(size + size / 2);
    indices.resize(size + size / 2);
  }
  void reserve_ranks(size_t size) {
    if (keys.size() >= size) return;
    keys.resize(size + size / 2);
    masses.resize(size + size / 2);
  }
};

struct RowScratch {
  std::vector<float> block_max, lane_max, floats;
  std::vector<uint32_t> counts;
  std::vector<uint64_t> block_mass;
  std::vector<size_t> kept_ties;  // indices of the words that a cut keeps of those equal to it
  Words words;
  SelectScratch select;

  void reserve(size_t row) {
    constexpr size_t kMaxLanes = 64;
    const size_t blocks = (row + kBlock - 1) / kBlock;
    kept_ties.clear();
    if (block_max.size() >= blocks) return;
    block_max.resize(blocks);
    lane_max.resize(blocks * kMaxLanes);
    block_mass.resize(blocks);
  }
  static RowScratch& of_thread() {
    thread_local RowScratch scratch;
    return scratch;
  }
};

}  // namespace fulmen::cpu
