// A step of the schedule as the arrays that an Executor takes.
#pragma once

#include "engine/executor.hpp"
#include "engine/scheduler.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace fulmen::engine {

/// Neighbours in a step, rows [first, first + count), whose requests begin with the same `tokens` keys.
struct SharedRun {
  size_t first, count;
  int64_t tokens;  // 0: nothing is shared
};

/// Attention shares the work on a common beginning in whole chunks of this many keys; a shorter one shares its memory.
constexpr int64_t kSharedChunk = 256;

/// Puts requests with a common beginning of at least kSharedChunk keys beside each other and says where they stand. The
/// keys of this step's own rows are never among the shared ones.
std::vector<SharedRun> group_by_shared_pages(std::vector<ScheduledRows>& rows, int64_t page_size);

class StepArrays {
 public:
  explicit StepArrays(int64_t page_size) : page_size_(page_size) {}

  /// Before the rows of the run are added.
  void add_shared(const SharedRun& run, std::span<const ScheduledRows> rows);
  /// The first `shared` keys are those of the run.
  void add(const ScheduledRows& rows, const Sampling& how, int64_t shared);

  size_t num_samples() const { return sample_rows_.size(); }
  Step view() const;

 private:
  int64_t page_size_;
  std::vector<int32_t> tokens_, positions_, qo_indptr_{0}, kv_len_, page_indptr_{0}, pages_, sample_rows_;
  std::vector<int64_t> slots_;
  std::vector<Sampling> sampling_;
  std::vector<int32_t> shared_qo_indptr_{0}, shared_kv_len_, shared_page_indptr_{0}, shared_pages_;
};

}  // namespace fulmen::engine
