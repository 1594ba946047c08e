#include "engine/step_arrays.hpp"

#include <algorithm>

namespace fulmen::engine {
namespace {

/// The page that completes the first kSharedChunk tokens, or -1. Two sequences hold the same one only if they begin with
/// the same tokens: pages are shared through the prefix tree, from the first one on.
int32_t chunk_page(const ScheduledRows& rows, int64_t page_size) {
  if (kSharedChunk % page_size != 0 || rows.first < kSharedChunk) return -1;
  return rows.sequence->pages[static_cast<size_t>(kSharedChunk / page_size - 1)];
}

int64_t shared_tokens(std::span<const ScheduledRows> run, int64_t page_size) {
  const std::vector<int32_t>& first = run[0].sequence->pages;
  int64_t tokens = run[0].first;
  for (const ScheduledRows& rows : run.subspan(1)) {
    const std::vector<int32_t>& pages = rows.sequence->pages;
    const auto common = std::mismatch(first.begin(), first.end(), pages.begin(), pages.end()).first - first.begin();
    tokens = std::min({tokens, rows.first, static_cast<int64_t>(common) * page_size});
  }
  return tokens / kSharedChunk * kSharedChunk;
}

}  // namespace

std::vector<SharedRun> group_by_shared_pages(std::vector<ScheduledRows>& rows, int64_t page_size) {
  const auto key = [&](const ScheduledRows& r) { return chunk_page(r, page_size); };
  std::stable_sort(rows.begin(), rows.end(),
                   [&](const ScheduledRows& a, const ScheduledRows& b) { return key(a) < key(b); });
  std::vector<SharedRun> runs;
  for (size_t first = 0, last; first < rows.size(); first = last) {
    last = first + 1;
    if (key(rows[first]) >= 0)
      while (last < rows.size() && key(rows[last]) == key(rows[first])) ++last;
    const size_t count = last - first;
    runs.push_back({first, count, count > 1 ? shared_tokens(std::span(rows).subspan(first, count), page_size) : 0});
  }
  return runs;
}

void StepArrays::add_shared(const SharedRun& run, std::span<const ScheduledRows> rows) {
  int64_t count = 0;
  for (const ScheduledRows& r : rows) count += r.count;
  shared_qo_indptr_.push_back(shared_qo_indptr_.back() + static_cast<int32_t>(count));
  shared_kv_len_.push_back(static_cast<int32_t>(run.tokens));
  const std::vector<int32_t>& pages = rows[0].sequence->pages;
  shared_pages_.insert(shared_pages_.end(), pages.begin(), pages.begin() + run.tokens / page_size_);
  shared_page_indptr_.push_back(static_cast<int32_t>(shared_pages_.size()));
}

void StepArrays::add(const ScheduledRows& rows, const Sampling& how, int64_t shared) {
  const Sequence& s = *rows.sequence;
  for (int64_t i = rows.first; i < rows.first + rows.count; ++i) {
    tokens_.push_back(s.tokens[static_cast<size_t>(i)]);
    positions_.push_back(static_cast<int32_t>(i));
    slots_.push_back(s.pages[static_cast<size_t>(i / page_size_)] * page_size_ + i % page_size_);
  }
  qo_indptr_.push_back(static_cast<int32_t>(tokens_.size()));
  kv_len_.push_back(static_cast<int32_t>(rows.first + rows.count - shared));
  pages_.insert(pages_.end(), s.pages.begin() + shared / page_size_, s.pages.end());
  page_indptr_.push_back(static_cast<int32_t>(pages_.size()));
  if (!rows.samples) return;
  sample_rows_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
  sampling_.push_back(how);
}

Step StepArrays::view() const {
  Step step{tokens_, positions_, slots_, qo_indptr_, kv_len_, page_indptr_, pages_, sample_rows_, sampling_, {}, {}, {}, {}};
  if (!shared_pages_.empty()) {
    step.shared_qo_indptr = shared_qo_indptr_;
    step.shared_kv_len = shared_kv_len_;
    step.shared_page_indptr = shared_page_indptr_;
    step.shared_pages = shared_pages_;
  }
  return step;
}

}  // namespace fulmen::engine
