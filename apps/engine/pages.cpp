#include "engine/pages.hpp"

#include <cassert>

namespace fulmen::engine {

PageAllocator::PageAllocator(int32_t num_pages) : references_(num_pages, 0) {
  free_.reserve(num_pages);
  for (int32_t page = num_pages; page-- > 0;) free_.push_back(page);  // low ids are given out first
}

std::optional<int32_t> PageAllocator::allocate() {
  if (free_.empty()) return std::nullopt;
  const int32_t page = free_.back();
  free_.pop_back();
  references_[page] = 1;
  return page;
}

void PageAllocator::retain(int32_t page) {
  assert(references_[page] > 0);
  ++references_[page];
}

void PageAllocator::release(int32_t page) {
  assert(references_[page] > 0);
  if (--references_[page] == 0) free_.push_back(page);
}

}  // namespace fulmen::engine
