// The arrays of a step as one block that goes to the device in one copy. Where each array lies depends on the limits
// only, so a captured graph reads the same addresses in every step.
#pragma once

#include "engine/executor.hpp"

#include <cstddef>
#include <cstdint>

namespace fulmen::engine {

class DeviceStep {
 public:
  /// pages: entries of the page table of all requests.
  DeviceStep(int64_t max_rows, int64_t max_requests, int64_t max_pages);

  /// Offsets in bytes. The table comes last, so that the copy ends where the step's own entries do.
  size_t tokens, positions, slots, qo_indptr, kv_len, page_indptr, sample_rows;
  size_t temperatures, top_ks, top_ps, min_ps, seeds, offsets;
  size_t pages;
  size_t bytes() const { return bytes_; }

  /// Writes the step into the block and returns how many bytes of it are in use. Rows and requests are padded up to
  /// padded_rows and padded_requests: token 0, no slot, no query rows, no keys. Shared beginnings are put before each
  /// request's own pages. Sampling parameters stand at the index of the sample, or at its row's with by_row.
  size_t fill(char* block, const Step& step, int64_t padded_rows, int64_t padded_requests, bool by_row) const;

 private:
  int64_t max_rows_, max_requests_, max_pages_;
  size_t bytes_ = 0;
};

}  // namespace fulmen::engine
