// Memory that kernels may touch: registered regions with their guard bands, and addresses as text.
#include <fmt/format.h>
#include <link.h>

#include <algorithm>

#include "emulator/runtime.hpp"

namespace fulmen::emulator {

namespace {

std::vector<RegionState*>& regions() {
  static auto* list = new std::vector<RegionState*>;  // sorted by guard_begin; leaked, since Regions may be static
  return *list;
}
RegionState* last_region = nullptr;

}  // namespace

RegionState* find_region(uintptr_t address) {
  if (last_region != nullptr && address >= last_region->guard_begin && address < last_region->guard_end) return last_region;
  auto& list = regions();
  auto it = std::upper_bound(list.begin(), list.end(), address, [](uintptr_t a, const RegionState* r) { return a < r->guard_begin; });
  if (it == list.begin()) return nullptr;
  RegionState* r = *--it;
  if (address >= r->guard_end) return nullptr;
  return last_region = r;
}

Region::Region(std::string name, const void* data, size_t bytes, RegionOptions options, size_t guard) {
  auto* r = new RegionState;
  r->name = std::move(name);
  r->begin = reinterpret_cast<uintptr_t>(data);
  r->end = r->begin + bytes;
  r->guard_begin = r->begin - guard;
  r->guard_end = r->end + guard;
  r->options = options;
  if (!options.initialised) r->bytes.assign(bytes, kUnwritten);
  r->pages.resize((r->end / 4 - r->begin / 4 + 1) / RegionState::kPageWords + 1);
  auto& list = regions();
  list.insert(std::upper_bound(list.begin(), list.end(), r, [](const RegionState* a, const RegionState* b) { return a->guard_begin < b->guard_begin; }), r);
  last_region = nullptr;
  handle_ = r;
}

Region::~Region() {
  if (handle_ == nullptr) return;
  auto* r = static_cast<RegionState*>(handle_);
  std::erase(regions(), r);
  last_region = nullptr;
  delete r;
}

void Region::set_initialised() { static_cast<RegionState*>(handle_)->bytes.clear(); }

void clear_shadow() {
  for (RegionState* r : regions()) {
    for (auto& page : r->pages) page.reset();
    r->read_bytes.clear();
    r->written_bytes.clear();
  }
}

// Read-only parts of the loaded program: constants of kernels lie there.
bool is_program_constant(uintptr_t address) {
  struct Range {
    uintptr_t begin, end;
  };
  static const std::vector<Range> ranges = [] {
    std::vector<Range> found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* to) {
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            const bool constant = (header.p_type == PT_LOAD && (header.p_flags & PF_W) == 0) || header.p_type == PT_GNU_RELRO;
            if (!constant) continue;
            const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
            static_cast<std::vector<Range>*>(to)->push_back({begin, begin + header.p_memsz});
          }
          return 0;
        },
        &found);
    return found;
  }();
  for (const Range& r : ranges) {
    if (address >= r.begin && address < r.end) return true;
  }
  return false;
}

std::string describe_address(uintptr_t address) {
  if (running != nullptr && in_arena(*running->block, address)) {
    return fmt::format("shared memory +{}", static_cast<long>(address - reinterpret_cast<uintptr_t>(running->block->arena)) - static_cast<long>(kArenaGuard));
  }
  if (grid != nullptr) {
    for (const auto& block : grid->resident) {
      if (in_arena(*block, address)) return fmt::format("shared memory of block {}", block->number);
      for (const Thread& t : block->threads) {
        if (address - reinterpret_cast<uintptr_t>(t.stack) < kStackBytes) return "a local variable of " + describe_thread(t);
      }
    }
    const auto call = reinterpret_cast<uintptr_t>(grid->call);
    if (address - call < grid->call_bytes) return fmt::format("the kernel's parameters +{}", address - call);
  }
  if (const RegionState* r = find_region(address)) {
    if (address < r->begin) return fmt::format("'{}' {} bytes before its begin", r->name, r->begin - address);
    if (address >= r->end) return fmt::format("'{}' {} bytes past its end ({} bytes long)", r->name, address - r->end, r->end - r->begin);
    return fmt::format("'{}' +{}", r->name, address - r->begin);
  }
  return fmt::format("{:#x} (no registered buffer)", address);
}

}  // namespace fulmen::emulator
