#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fulmen::engine {

/// The merges of a BPE: which neighbouring tokens become one, and in what order.
class MergeTable {
 public:
  static constexpr int32_t kNoRank = INT32_MAX;

  /// At most num_merges calls of add may follow.
  explicit MergeTable(size_t num_merges);
  /// The next rank; returns false if the pair has one already.
  bool add(int32_t left, int32_t right, int32_t merged);

  int32_t rank(int32_t left, int32_t right) const;  // kNoRank: they don't merge
  int32_t merged(int32_t rank) const { return merged_[static_cast<size_t>(rank)]; }

  /// Merges the tokens of one word in place: always the pair of lowest rank, of equal ones the leftmost.
  void apply(std::vector<int32_t>& word) const;

 private:
  struct Slot {
    uint64_t pair;
    int32_t rank;
  };
  size_t slot_of(uint64_t pair) const;
  void apply_by_scan(std::vector<int32_t>& word) const;
  void apply_by_heap(std::vector<int32_t>& word) const;

  std::vector<Slot> slots_;  // open addressing, at most half full
  int shift_;
  std::vector<int32_t> merged_;
};

}  // namespace fulmen::engine
