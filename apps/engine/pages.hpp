// Pages of the KV cache, counted by reference: a request holds its pages, the prefix tree holds what it remembers.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace fulmen::engine {

class PageAllocator {
 public:
  explicit PageAllocator(int32_t num_pages);

  /// A page with one reference, or nothing when all are in use.
  std::optional<int32_t> allocate();
  void retain(int32_t page);
  void release(int32_t page);

  int32_t references(int32_t page) const { return references_[page]; }
  int32_t num_pages() const { return static_cast<int32_t>(references_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }

 private:
  std::vector<int32_t> references_;
  std::vector<int32_t> free_;
};

}  // namespace fulmen::engine
