#include "cpu/select.hpp"

#include <algorithm>
#include <bit>

namespace fulmen::cpu {
namespace {

constexpr int kDigitBits = 10;
constexpr size_t kSortBelow = 48;

struct Goal {
  int64_t count;
  uint64_t mass;
  bool reached(int64_t c, uint64_t m) const { return (count > 0 && c >= count) || (mass > 0 && m >= mass); }
};

// Words of one key each have the same mass, so the number of ties needed is a division.
Cut cut_at(uint32_t key, int64_t equal, uint64_t mass, int64_t above_count, uint64_t above_mass,
           const Goal& goal) {
  int64_t ties = equal;
  if (goal.count > 0) ties = std::min(ties, goal.count - above_count);
  if (goal.mass > 0 && mass > 0) {
    const uint64_t needed = (goal.mass - above_mass + mass - 1) / mass;
    if (needed < static_cast<uint64_t>(ties)) ties = static_cast<int64_t>(needed);
  }
  return {key, ties, above_count + ties, above_mass + static_cast<uint64_t>(ties) * mass, true};
}

Cut walk_sorted(std::vector<SelectScratch::Word>& words, int64_t above_count, uint64_t above_mass,
                const Goal& goal) {
  std::sort(words.begin(), words.end(), [](const auto& a, const auto& b) { return a.key > b.key; });
  for (size_t i = 0; i < words.size();) {
    size_t end = i + 1;
    while (end < words.size() && words[end].key == words[i].key) ++end;
    const auto equal = static_cast<int64_t>(end - i);
    const uint64_t mass = words[i].mass * static_cast<uint64_t>(equal);
    if (goal.reached(above_count + equal, above_mass + mass)) {
      return cut_at(words[i].key, equal, words[i].mass, above_count, above_mass, goal);
    }
    above_count += equal;
    above_mass += mass;
    i = end;
  }
  return {};
}

}  // namespace

Cut select_prefix(const uint32_t* keys, const uint64_t* masses, size_t n, uint32_t low, uint32_t high,
                  int64_t count, uint64_t mass, SelectScratch& scratch) {
  const Goal goal{count, mass};
  auto& words = scratch.words;
  scratch.counts.resize(size_t{1} << kDigitBits);
  scratch.masses.resize(size_t{1} << kDigitBits);
  const auto mass_of_word = [&](size_t i) { return masses != nullptr ? masses[i] : 0; };
  if (n <= kSortBelow) {
    words.clear();
    for (size_t i = 0; i < n; ++i) words.push_back({keys[i], mass_of_word(i)});
    return walk_sorted(words, 0, 0, goal);
  }

  int64_t above_count = 0;
  uint64_t above_mass = 0;
  for (bool first = true; first || (words.size() > kSortBelow && low < high); first = false) {
    // Digits of the range in question, not of the whole key: real logits share their leading bits.
    const int shift = std::max(0, static_cast<int>(std::bit_width(high - low)) - kDigitBits);
    const size_t bins = ((high - low) >> shift) + 1;
    std::fill_n(scratch.counts.begin(), bins, 0u);
    std::fill_n(scratch.masses.begin(), bins, uint64_t{0});
    const auto add = [&](uint32_t key, uint64_t word_mass) {
      const size_t bin = (key - low) >> shift;
      ++scratch.counts[bin];
      scratch.masses[bin] += word_mass;
    };
    if (first) {
      for (size_t i = 0; i < n; ++i) add(keys[i], mass_of_word(i));
    } else {
      for (const auto& word : words) add(word.key, word.mass);
    }
    size_t bin = bins;
    while (bin > 0) {
      --bin;
      const int64_t with_count = above_count + scratch.counts[bin];
      const uint64_t with_mass = above_mass + scratch.masses[bin];
      if (goal.reached(with_count, with_mass)) break;
      if (bin == 0) return {};
      above_count = with_count;
      above_mass = with_mass;
    }
    auto& next = scratch.next;
    next.clear();
    const uint32_t from = low + (static_cast<uint32_t>(bin) << shift);
    low = ~0u;
    high = 0;
    const auto keep = [&](uint32_t key, uint64_t word_mass) {
      if (((key - from) >> shift) != 0) return;
      next.push_back({key, word_mass});
      low = std::min(low, key);
      high = std::max(high, key);
    };
    if (first) {
      for (size_t i = 0; i < n; ++i) keep(keys[i], mass_of_word(i));
    } else {
      for (const auto& word : words) keep(word.key, word.mass);
    }
    words.swap(next);
  }
  return walk_sorted(words, above_count, above_mass, goal);
}

}  // namespace fulmen::cpu
