#include "engine/device_step.hpp"

#include <algorithm>
#include <stdexcept>

namespace fulmen::engine {

DeviceStep::DeviceStep(int64_t max_rows, int64_t max_requests, int64_t max_pages)
    : max_rows_(max_rows), max_requests_(max_requests), max_pages_(max_pages) {
  const auto place = [this](int64_t count, size_t element) {
    const size_t at = bytes_;
    bytes_ = (bytes_ + static_cast<size_t>(count) * element + 255) / 256 * 256;
    return at;
  };
  slots = place(max_rows, 8);
  seeds = place(max_requests, 8);
  offsets = place(max_requests, 8);
  tokens = place(max_rows, 4);
  positions = place(max_rows, 4);
  qo_indptr = place(max_requests + 1, 4);
  kv_len = place(max_requests, 4);
  page_indptr = place(max_requests + 1, 4);
  sample_rows = place(max_requests, 4);
  temperatures = place(max_requests, 4);
  top_ks = place(max_requests, 4);
  top_ps = place(max_requests, 4);
  min_ps = place(max_requests, 4);
  pages = place(max_pages, 4);
}

size_t DeviceStep::fill(char* block, const Step& step, int64_t padded_rows, int64_t padded_requests,
                        bool by_row) const {
  const int64_t rows = static_cast<int64_t>(step.tokens.size()), requests = static_cast<int64_t>(step.kv_len.size());
  if (rows > padded_rows || padded_rows > max_rows_ || requests > padded_requests || padded_requests > max_requests_)
    throw std::invalid_argument("the step exceeds the executor's limits");
  const auto i32 = [block](size_t offset) { return reinterpret_cast<int32_t*>(block + offset); };
  const auto i64 = [block](size_t offset) { return reinterpret_cast<int64_t*>(block + offset); };
  const auto f32 = [block](size_t offset) { return reinterpret_cast<float*>(block + offset); };
  const auto put = [](auto* out, auto values, int64_t padded, auto padding) {
    std::fill(std::copy(values.begin(), values.end(), out), out + padded, padding);
  };
  put(i32(tokens), step.tokens, padded_rows, 0);
  put(i32(positions), step.positions, padded_rows, 0);
  put(i64(slots), step.slots, padded_rows, int64_t{-1});
  put(i32(qo_indptr), step.qo_indptr, padded_requests + 1, static_cast<int32_t>(rows));

  int32_t* table = i32(pages);
  int64_t used = 0, segment = 0;
  const auto add_pages = [&](std::span<const int32_t> all, std::span<const int32_t> indptr, int64_t of) {
    const auto own = all.subspan(static_cast<size_t>(indptr[of]), static_cast<size_t>(indptr[of + 1] - indptr[of]));
    if (used + static_cast<int64_t>(own.size()) > max_pages_)
      throw std::invalid_argument("the step's page tables exceed the executor's limits");
    std::copy(own.begin(), own.end(), table + used);
    used += static_cast<int64_t>(own.size());
  };
  for (int64_t r = 0; r < padded_requests; ++r) {
    i32(page_indptr)[r] = static_cast<int32_t>(used);
    i32(kv_len)[r] = r < requests ? step.kv_len[r] : 0;
    if (r >= requests) continue;
    if (!step.shared_kv_len.empty()) {
      while (step.shared_qo_indptr[segment + 1] <= step.qo_indptr[r]) ++segment;
      add_pages(step.shared_pages, step.shared_page_indptr, segment);
      i32(kv_len)[r] += step.shared_kv_len[segment];
    }
    add_pages(step.pages, step.page_indptr, r);
  }
  i32(page_indptr)[padded_requests] = static_cast<int32_t>(used);

  const int64_t samples = static_cast<int64_t>(step.sample_rows.size());
  put(i32(sample_rows), step.sample_rows, padded_requests, 0);
  for (int64_t i = 0; i < padded_requests; ++i) {  // padding: greedy
    f32(temperatures)[i] = 0, i32(top_ks)[i] = 0, f32(top_ps)[i] = 1, f32(min_ps)[i] = 0, i64(seeds)[i] = 0,
    i64(offsets)[i] = 0;
  }
  for (int64_t i = 0; i < samples; ++i) {
    const Sampling& s = step.sampling[i];
    const int64_t at = by_row ? step.sample_rows[i] : i;
    f32(temperatures)[at] = s.temperature;
    i32(top_ks)[at] = s.top_k;
    f32(top_ps)[at] = s.top_p;
    f32(min_ps)[at] = s.min_p;
    i64(seeds)[at] = static_cast<int64_t>(s.seed);
    i64(offsets)[at] = step.positions[step.sample_rows[i]];
  }
  return pages + static_cast<size_t>(used) * 4;
}

}  // namespace fulmen::engine
