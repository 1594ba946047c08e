#include "cpu/key_rows.hpp"

#include <algorithm>
#include <atomic>

namespace fulmen::cpu {
namespace {

struct Poison {
  alignas(64) uint32_t f32[kMaxHeadDim];
  alignas(64) uint16_t f16[kMaxHeadDim], bf16[kMaxHeadDim];
  Poison() {
    std::fill_n(f32, kMaxHeadDim, 0x7fc00000u);
    std::fill_n(f16, kMaxHeadDim, uint16_t{0x7e00});
    std::fill_n(bf16, kMaxHeadDim, uint16_t{0x7fc0});
  }
  const void* of(DType t) const { return t == DType::f32 ? static_cast<const void*>(f32) : t == DType::f16 ? f16 : bf16; }
};
const Poison poison;

// Rows of K or V for keys [begin, end) of a block, as pointers.
void locate(const AttentionParams& p, const KvStorage& storage, const Link& link, const PageList& list, int32_t head,
            int64_t begin, int64_t end, const void** out) {
  const int64_t bytes = dtype_bytes(p.kv_dtype);
  const char* base = static_cast<const char*>(storage.data) + head * storage.stride_head * bytes;
  const int64_t page_size = list.ragged ? 1 : p.page_size;
  int64_t page = (begin - link.key_begin) / page_size;
  int64_t offset = (begin - link.key_begin) - page * page_size;
  for (int64_t key = begin; key < end; ++page, offset = 0) {
    const int64_t stop = std::min(end, key + page_size - offset);
    const int64_t id = page_id(list, page, storage.num_pages);
    if (id < 0) {
      const int64_t found = !list.ragged && list.data && page < list.num_pages
                                ? load_index(list.data, list.i64, list.first + page)
                                : page;
      report(p, kFaultPage, link.level, link.segment, found,
             list.data && page < list.num_pages ? storage.num_pages : list.num_pages);
      for (; key < stop; ++key) *out++ = missing_row(p.kv_dtype);
      continue;
    }
    const char* row = base + (id * storage.stride_page + offset * storage.stride_token) * bytes;
    for (; key < stop; ++key, row += storage.stride_token * bytes) *out++ = row;
  }
}

}  // namespace

const void* missing_row(DType dtype) { return poison.of(dtype); }

void report(const AttentionParams& p, int32_t code, int32_t level, int32_t request, int64_t value, int64_t limit) {
  auto& record = PlanView(p.shape, p.plan).header->status;
  int32_t none = kFaultNone;
  std::atomic_ref<int32_t> fault(record.fault);
  // -1 while the others are written: whoever reads the record meanwhile sees a fault without details.
  if (!fault.compare_exchange_strong(none, -1)) return;
  record.request = request;
  record.level = level;
  record.value = value;
  record.limit = limit;
  fault.store(code, std::memory_order_release);
}

Chain::Chain(const AttentionParams& params, const PlanView& plan, const Segment& s) : p(params) {
  int32_t level = s.level, segment = s.index;
  int32_t order[kMaxLevels];
  for (; level >= 0 && segment >= 0; segment = static_cast<int32_t>(plan.parent(level)[segment]), --level) {
    order[level] = segment;
    ++count;
  }
  const int32_t top = level + 1;
  for (int32_t i = 0; i < count; ++i) {
    Link& link = links[i];
    link.level = top + i;
    link.segment = order[top + i];
    link.key_begin = plan.key_begin(link.level)[link.segment];
    link.key_end = plan.key_end(link.level)[link.segment];
    link.k = page_list(p.kv[link.level], link.segment);
    link.v = p.v_shares_table ? link.k : page_list(p.v_table[link.level], link.segment);
  }
}

void Chain::rows(int32_t base, int64_t begin, int64_t end, int32_t head, const void** k, const void** v) const {
  std::fill(k, k + kBlock, kZeroRow);
  std::fill(v, v + kBlock, kZeroRow);
  for (int32_t i = 0; i < count; ++i) {
    const int64_t from = std::max(begin, links[i].key_begin), to = std::min(end, links[i].key_end);
    if (from >= to) continue;
    locate(p, p.k, links[i], links[i].k, head, from, to, k + (from - base));
    locate(p, p.v, links[i], links[i].v, head, from, to, v + (from - base));
  }
}

}  // namespace fulmen::cpu
