// What a thread knows of the others: up to which of their epochs their accesses are ordered before its own. Epochs are numbers of
// one counter per block, so a barrier of the whole block is one number (floor), a warp's is one per warp, and single threads
// (atomics with release and acquire, partial warps) have their own. Knowledge is shared and never changed once given out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace fulmen::emulator {

// How many Refs hold an object; a copy of it is held by nobody yet.
struct Counted {
  int references = 0;
  Counted() = default;
  Counted(const Counted&) {}
  Counted& operator=(const Counted&) { return *this; }
};

template <class T> class Ref {
 public:
  Ref() = default;
  explicit Ref(T* p) : p_(p) { retain(); }
  Ref(const Ref& other) : p_(other.p_) { retain(); }
  Ref(Ref&& other) noexcept : p_(std::exchange(other.p_, nullptr)) {}
  Ref& operator=(Ref other) noexcept {
    std::swap(p_, other.p_);
    return *this;
  }
  ~Ref() {
    if (p_ != nullptr && --p_->references == 0) delete p_;
  }
  T* get() const { return p_; }
  T* operator->() const { return p_; }
  T& operator*() const { return *p_; }
  explicit operator bool() const { return p_ != nullptr; }

 private:
  void retain() {
    if (p_ != nullptr) ++p_->references;
  }
  T* p_ = nullptr;
};

struct Knowledge : Counted {
  uint32_t floor = 0;
  uint32_t warps[32] = {};
  std::vector<uint32_t> threads;  // empty or one per thread

  bool covers(uint32_t thread, uint32_t epoch) const {
    return epoch <= floor || epoch <= warps[thread / 32] || (thread < threads.size() && epoch <= threads[thread]);
  }
  bool dominates(const Knowledge& other) const {
    if (other.floor > floor) return false;
    for (int w = 0; w < 32; ++w) {
      if (other.warps[w] > floor && other.warps[w] > warps[w]) return false;
    }
    for (uint32_t t = 0; t < other.threads.size(); ++t) {
      if (other.threads[t] != 0 && !covers(t, other.threads[t])) return false;
    }
    return true;
  }
  void join(const Knowledge& other) {
    floor = std::max(floor, other.floor);
    for (int w = 0; w < 32; ++w) warps[w] = std::max(warps[w], other.warps[w]);
    if (threads.size() < other.threads.size()) threads.resize(other.threads.size());
    for (size_t t = 0; t < other.threads.size(); ++t) threads[t] = std::max(threads[t], other.threads[t]);
  }
  void learn(uint32_t thread, uint32_t epoch) {
    if (threads.size() <= thread) threads.resize(thread + 1);
    threads[thread] = std::max(threads[thread], epoch);
  }
};
using KnowledgeRef = Ref<Knowledge>;

inline KnowledgeRef joined(const KnowledgeRef& a, const KnowledgeRef& b) {
  if (a.get() == b.get() || !b) return a;
  if (!a || b->dominates(*a)) return b;
  if (a->dominates(*b)) return a;
  KnowledgeRef both(new Knowledge(*a.get()));
  both->join(*b.get());
  return both;
}

// Of several blocks, sorted by block.
struct World : Counted {
  std::vector<std::pair<uint32_t, KnowledgeRef>> blocks;

  const Knowledge* find(uint32_t block) const {
    auto it = std::lower_bound(blocks.begin(), blocks.end(), block, [](const auto& e, uint32_t b) { return e.first < b; });
    return it != blocks.end() && it->first == block ? it->second.get() : nullptr;
  }
  void learn(uint32_t block, const KnowledgeRef& knowledge) {
    auto it = std::lower_bound(blocks.begin(), blocks.end(), block, [](const auto& e, uint32_t b) { return e.first < b; });
    if (it != blocks.end() && it->first == block) {
      it->second = joined(it->second, knowledge);
    } else {
      blocks.insert(it, {block, knowledge});
    }
  }
};
using WorldRef = Ref<World>;

inline WorldRef joined(const WorldRef& a, const WorldRef& b) {
  if (a.get() == b.get() || !b) return a;
  if (!a) return b;
  WorldRef both(new World(*a.get()));
  for (const auto& [block, knowledge] : b->blocks) both->learn(block, knowledge);
  return both;
}

}  // namespace fulmen::emulator
