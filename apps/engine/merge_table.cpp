#include "engine/merge_table.hpp"

#include <algorithm>
#include <bit>
#include <queue>

namespace fulmen::engine {
namespace {

constexpr uint64_t kEmpty = ~uint64_t{0};  // no pair: tokens are never negative

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

MergeTable::MergeTable(size_t num_merges) {
  const size_t slots = std::bit_ceil(2 * num_merges + 2);
  slots_.assign(slots, {kEmpty, kNoRank});
  shift_ = 64 - std::countr_zero(slots);
  merged_.reserve(num_merges);
}

size_t MergeTable::slot_of(uint64_t pair) const {
  const uint64_t mixed = (pair ^ pair >> 29) * 0x9e3779b97f4a7c15u;
  size_t slot = mixed >> shift_;
  while (slots_[slot].pair != pair && slots_[slot].pair != kEmpty) slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

bool MergeTable::add(int32_t left, int32_t right, int32_t merged) {
  Slot& slot = slots_[slot_of(pair_of(left, right))];
  const auto rank = static_cast<int32_t>(merged_.size());
  merged_.push_back(merged);
  if (slot.pair != kEmpty) return false;
  slot = {pair_of(left, right), rank};
  return true;
}

int32_t MergeTable::rank(int32_t left, int32_t right) const {
  return slots_[slot_of(pair_of(left, right))].rank;
}

void MergeTable::apply(std::vector<int32_t>& word) const {
  // The scan is quadratic but touches a few cache lines; beyond this length the heap is faster.
  constexpr size_t kScanTokens = 48;
  if (word.size() <= kScanTokens) {
    apply_by_scan(word);
  } else {
    apply_by_heap(word);
  }
}

void MergeTable::apply_by_scan(std::vector<int32_t>& word) const {
  if (word.size() < 2) return;
  std::vector<int32_t> ranks(word.size() - 1);  // of the pair (i, i + 1)
  for (size_t i = 0; i < ranks.size(); ++i) ranks[i] = rank(word[i], word[i + 1]);
  while (!ranks.empty()) {
    const auto lowest = std::min_element(ranks.begin(), ranks.end());
    if (*lowest == kNoRank) return;
    const auto i = static_cast<size_t>(lowest - ranks.begin());
    word[i] = merged(*lowest);
    word.erase(word.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    ranks.erase(lowest);
    if (i > 0) ranks[i - 1] = rank(word[i - 1], word[i]);
    if (i < ranks.size()) ranks[i] = rank(word[i], word[i + 1]);
  }
}

void MergeTable::apply_by_heap(std::vector<int32_t>& word) const {
  constexpr int32_t kGone = -1;
  struct Candidate {
    int32_t rank;
    size_t left, right;  // places in the word
    uint64_t pair;       // what stood there: a candidate is stale when it no longer does
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  const size_t size = word.size();
  std::vector<size_t> next(size), previous(size);
  for (size_t i = 0; i < size; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;  // of the first never used
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto offer = [&](size_t left, size_t right) {
    const int32_t r = rank(word[left], word[right]);
    if (r != kNoRank) candidates.push({r, left, right, pair_of(word[left], word[right])});
  };
  for (size_t i = 0; i + 1 < size; ++i) offer(i, i + 1);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    // A dead place holds kGone, which no pair has, and a right neighbour that grew has another token.
    if (pair_of(word[best.left], word[best.right]) != best.pair) continue;
    word[best.left] = merged(best.rank);
    word[best.right] = kGone;
    next[best.left] = next[best.right];
    if (next[best.left] < size) {
      previous[next[best.left]] = best.left;
      offer(best.left, next[best.left]);
    }
    if (best.left > 0) offer(previous[best.left], best.left);
  }
  std::erase(word, kGone);
}

}  // namespace fulmen::engine
