// What kernels do to memory: registered regions, the race detector's shadow, asynchronous copies, atomics, counters.
#include <fmt/format.h>
#include <link.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "emulator/matrix.hpp"
#include "emulator/runtime.hpp"

namespace fulmen::emulator {

#define CALLER reinterpret_cast<uintptr_t>(__builtin_return_address(0))

// ---- regions

namespace {

std::vector<RegionState*>& regions() {
  static auto* list = new std::vector<RegionState*>;  // sorted by guard_begin; leaked, since Regions may be static
  return *list;
}
RegionState* last_region = nullptr;

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

// ---- the race detector

namespace {

const char* access_word(bool write, bool atomic) { return atomic ? "atomic access" : write ? "write" : "read"; }

bool covered(const Thread& t, const Access& a) {
  if (a.who == t.who) return true;
  if (a.block() == t.block->number) return t.known->covers(a.thread(), a.epoch());
  if (!t.world) return false;
  const Knowledge* k = t.world->find(a.block());
  return k != nullptr && k->covers(a.thread(), a.epoch());
}

struct AccessInfo {
  uintptr_t address;
  uint32_t size;
  bool write, atomic;
  uintptr_t pc;
};

[[noreturn]] void report_race(Thread& t, const AccessInfo& now, const Access& before, bool before_wrote) {
  fault(FaultKind::race,
        fmt::format("{} of {} bytes at {} by {} is not ordered after the {} by {}\n    which was at {}\n    this one",
                    access_word(now.write, now.atomic), now.size, describe_address(now.address), describe_thread(t),
                    access_word(before_wrote, before.atomic()), describe_who(before.who), where(unpack_pc(before.pc))),
        now.pc);
}

uint32_t new_reader_set() {
  if (!grid->free_reader_sets.empty()) {
    const uint32_t n = grid->free_reader_sets.back();
    grid->free_reader_sets.pop_back();
    grid->reader_sets[n].clear();
    return n;
  }
  grid->reader_sets.emplace_back();
  return static_cast<uint32_t>(grid->reader_sets.size() - 1);
}

void drop_readers(Access& read) {
  if (read.who == Access::kMany) grid->free_reader_sets.push_back(read.epoch_bits);
  read.who = Access::kNobody;
}

void touch(Thread& t, Cell& cell, const AccessInfo& now, uint32_t packed_pc) {
  const Access mine{t.who, t.epoch | (now.atomic ? Access::kAtomic : 0), packed_pc};
  const Access& w = cell.write;
  if (w.who != Access::kNobody && w.who != t.who && !(now.atomic && w.atomic()) && !covered(t, w)) report_race(t, now, w, true);
  Access& r = cell.read;
  if (now.write) {
    if (r.who == Access::kMany) {
      for (const Access& reader : grid->reader_sets[r.epoch_bits]) {
        if (!(now.atomic && reader.atomic()) && !covered(t, reader)) report_race(t, now, reader, false);
      }
    } else if (r.who != Access::kNobody && r.who != t.who && !(now.atomic && r.atomic()) && !covered(t, r)) {
      report_race(t, now, r, false);
    }
    drop_readers(r);
    cell.write = mine;
    return;
  }
  if (r.who == Access::kNobody || r.who == t.who) {
    r = mine;
    return;
  }
  if (r.who != Access::kMany) {
    if (covered(t, r)) {
      r = mine;
      return;
    }
    const uint32_t set = new_reader_set();
    grid->reader_sets[set].push_back(r);
    r = {Access::kMany, set, 0};
  }
  auto& readers = grid->reader_sets[r.epoch_bits];
  if (covered(t, readers.back()) && readers.back().who != t.who) {
    // A barrier lies between: usually all of them are ordered before now.
    bool all = true;
    for (const Access& reader : readers) all = all && covered(t, reader);
    if (all) readers.clear();
  }
  const size_t recent = std::min<size_t>(readers.size(), 4);
  for (size_t i = 1; i <= recent; ++i) {
    if (readers[readers.size() - i].who == t.who) {
      readers[readers.size() - i] = mine;
      return;
    }
  }
  if (readers.size() >= 1024) {
    std::erase_if(readers, [&](const Access& a) { return a.who == t.who; });
  }
  readers.push_back(mine);
}

void touch_word(Thread& t, Cell& cell, uintptr_t word, uintptr_t address, uint32_t size, const AccessInfo& now, uint32_t packed_pc) {
  const bool whole = address <= word && address + size >= word + 4;
  if (cell.write.who != Access::kSplit) {
    if (whole) {
      touch(t, cell, now, packed_pc);
      return;
    }
    // Bytes of one word have different histories from now on. (Sets of readers are shared by copying.)
    Split split;
    for (Cell& c : split.bytes) {
      c = cell;
      if (cell.read.who == Access::kMany) {
        const uint32_t set = new_reader_set();
        grid->reader_sets[set] = grid->reader_sets[cell.read.epoch_bits];
        c.read.epoch_bits = set;
      }
    }
    drop_readers(cell.read);
    grid->splits.push_back(split);
    cell.write = {Access::kSplit, static_cast<uint32_t>(grid->splits.size() - 1), 0};
  }
  const uintptr_t first = std::max(address, word), last = std::min(address + size, word + 4);
  for (uintptr_t b = first; b < last; ++b) touch(t, grid->splits[cell.write.epoch_bits].bytes[b - word], now, packed_pc);
}

const char* direction(bool write) { return write ? "write" : "read"; }

uint32_t log_occurrence(const Warp& warp, uint32_t pc, uint32_t lane) {
  uint32_t n = 0;
  for (const LoggedAccess& a : warp.log) n += a.pc == pc && a.lane == lane;
  return n;
}

void log_access(Thread& t, uintptr_t address, uint32_t size, bool shared, uint32_t packed_pc) {
  Warp& warp = *t.warp;
  // A lane's accesses come in a run; its occurrences are counted backwards only as far as needed.
  if (warp.log.size() > 8192) flush_log(warp);
  warp.log.push_back({packed_pc, log_occurrence(warp, packed_pc, t.lane), t.lane, size, address, shared});
}

uint64_t count_distinct(std::vector<uintptr_t>& values) {
  std::sort(values.begin(), values.end());
  return static_cast<uint64_t>(std::unique(values.begin(), values.end()) - values.begin());
}

// What a kernel that touches each byte once would move.
void count_least(RegionState& r, uintptr_t address, uint32_t size, bool write) {
  std::vector<bool>& seen = write ? r.written_bytes : r.read_bytes;
  if (seen.empty()) seen.resize(r.end - r.begin);
  for (uint32_t i = 0; i < size; ++i) {
    grid->report.counters.global_least_bytes += !seen[address - r.begin + i];
    seen[address - r.begin + i] = true;
  }
}

}  // namespace

// Lanes' accesses by one instruction, put together as the hardware would have seen them.
void flush_log(Warp& warp) {
  std::stable_sort(warp.log.begin(), warp.log.end(), [](const LoggedAccess& a, const LoggedAccess& b) {
    return a.pc != b.pc ? a.pc < b.pc : a.occurrence < b.occurrence;
  });
  Counters& counters = grid->report.counters;
  for (size_t i = 0; i < warp.log.size();) {
    size_t end = i;
    while (end < warp.log.size() && warp.log[end].pc == warp.log[i].pc && warp.log[end].occurrence == warp.log[i].occurrence) ++end;
    AccessCount& of_instruction = grid->access_counts[uint64_t{warp.log[i].pc} << 1 | (warp.log[i].shared ? 1 : 0)];
    ++of_instruction.instructions;
    for (size_t k = i; k < end; ++k) of_instruction.bytes += warp.log[k].size;
    uint64_t cost = 0, ideal = 0;
    if (warp.log[i].shared) {
      // 32 banks of 4 bytes; 8- and 16-byte accesses go in halves and quarters of a warp.
      const uint32_t lanes_per_pass = warp.log[i].size >= 16 ? 8 : warp.log[i].size == 8 ? 16 : 32;
      for (uint32_t first = 0; first < 32; first += lanes_per_pass) {
        std::vector<uintptr_t> words;
        for (size_t k = i; k < end; ++k) {
          if (warp.log[k].lane < first || warp.log[k].lane >= first + lanes_per_pass) continue;
          for (uintptr_t w = warp.log[k].address / 4; w <= (warp.log[k].address + warp.log[k].size - 1) / 4; ++w) words.push_back(w);
        }
        if (words.empty()) continue;
        std::sort(words.begin(), words.end());
        words.erase(std::unique(words.begin(), words.end()), words.end());
        uint32_t banks[32] = {}, most = 0;
        for (uintptr_t w : words) most = std::max(most, ++banks[w % 32]);
        cost += most;
        ideal += (words.size() + 31) / 32;
      }
      counters.shared_wavefronts += cost;
      counters.shared_ideal_wavefronts += ideal;
    } else {
      std::vector<uintptr_t> sectors, words;
      for (size_t k = i; k < end; ++k) {
        for (uintptr_t s = warp.log[k].address / 32; s <= (warp.log[k].address + warp.log[k].size - 1) / 32; ++s) sectors.push_back(s);
        for (uintptr_t w = warp.log[k].address / 4; w <= (warp.log[k].address + warp.log[k].size - 1) / 4; ++w) words.push_back(w);
      }
      cost = count_distinct(sectors);
      const uint64_t distinct = count_distinct(words);
      ideal = (distinct + 7) / 8;
      counters.global_warp_bytes += 4 * distinct;
      counters.global_sectors += cost;
    }
    of_instruction.cost += cost;
    of_instruction.ideal += ideal;
    i = end;
  }
  warp.log.clear();
}

void check_aligned(uintptr_t address, uint32_t size, uintptr_t pc, const char* what) {
  if ((address & (size - 1)) != 0) {
    fault(FaultKind::misaligned, fmt::format("{} of {} bytes at {}, which is not a multiple of {}", what, size, describe_address(address), size), pc);
  }
}

namespace {
// A struct is copied with the padding between its members, which nobody writes: only one that is wholly unwritten is a fault.
// Whatever a machine register holds has no padding.
void check_written(Thread& t, uintptr_t address, uint32_t size, uint32_t unwritten, uintptr_t pc) {
  const bool one_register = size <= 16 && (size & (size - 1)) == 0;
  if (unwritten == 0 || (!one_register && unwritten < size)) return;
  fault(FaultKind::uninitialised,
        fmt::format("read of {} bytes at {} by {}: {} of them were never written", size, describe_address(address), describe_thread(t), unwritten), pc);
}
}  // namespace

Block* owner_of(const Thread& t, uintptr_t address) {
  if (in_arena(*t.block, address)) return t.block;
  const uint32_t cluster = grid->launch->cluster;
  if (cluster == 1) return nullptr;
  for (const auto& block : grid->resident) {
    if (block->number / cluster != t.block->number / cluster || block->live_threads == 0 || !in_arena(*block, address)) continue;
    if (!t.world || t.world->find(block->number) == nullptr) {
      fault(FaultKind::race, fmt::format("{} touches {}, but nothing says that this block has started", describe_thread(t), describe_address(address)));
    }
    return block.get();
  }
  return nullptr;
}

void observe_shared(Thread& t, Block& block, uint32_t offset, uint32_t size, bool write, uintptr_t pc, bool atomic) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(block.arena) + offset;
  const bool dynamic = offset >= kArenaGuard && offset + size <= kArenaGuard + block.dynamic_bytes;
  const size_t static_begin = (kArenaGuard + block.dynamic_bytes + 127) / 128 * 128 + kArenaGuard;
  if (!dynamic && !(offset >= static_begin && offset + size <= block.static_end)) {
    fault(FaultKind::out_of_bounds,
          fmt::format("{} of {} bytes at {} by {}: the block has {} bytes of dynamic shared memory", direction(write), size, describe_address(address),
                      describe_thread(t), block.dynamic_bytes),
          pc);
  }
  grid->report.counters.shared_bytes += size;
  uint8_t* state = &block.states[offset];
  uint32_t unwritten = 0;
  for (uint32_t i = 0; i < size; ++i) {
    if (state[i] == kPending) {
      fault(FaultKind::pending_copy,
            fmt::format("{} of {} bytes at {} by {}: a cp.async to it is in flight (nobody has waited for it yet)", direction(write), size,
                        describe_address(address), describe_thread(t)),
            pc);
    }
    unwritten += state[i] == kUnwritten;
    if (write) state[i] = kWritten;
  }
  if (!write) check_written(t, address, size, unwritten, pc);
  const uint32_t packed = pack_pc(pc);
  const AccessInfo now{address, size, write, atomic, pc};
  for (uint32_t word = offset & ~3u; word < offset + size; word += 4) {
    touch_word(t, block.cells[word / 4], word, offset, size, now, packed);
  }
  if (grid->count && &block == t.block) log_access(t, offset, size, true, packed);
}

void observe_global(Thread& t, uintptr_t address, uint32_t size, bool write, uintptr_t pc, bool atomic) {
  RegionState* r = find_region(address);
  if (r == nullptr) {
    const auto call = reinterpret_cast<uintptr_t>(grid->call);
    if (!write && address - call < grid->call_bytes) return;
    if (!write && is_program_constant(address)) return;
    fault(FaultKind::out_of_bounds, fmt::format("{} of {} bytes at {} by {}", direction(write), size, describe_address(address), describe_thread(t)), pc);
  }
  if (address < r->begin || address + size > r->end) {
    fault(FaultKind::out_of_bounds, fmt::format("{} of {} bytes at {} by {}", direction(write), size, describe_address(address), describe_thread(t)), pc);
  }
  if (write && r->options.read_only) {
    fault(FaultKind::read_only, fmt::format("write of {} bytes at {} by {}: it is an input", size, describe_address(address), describe_thread(t)), pc);
  }
  if (grid->launch->overlapped && !t.resolved && !r->options.independent) {
    fault(FaultKind::before_wait,
          fmt::format("{} of {} bytes at {} by {} before griddepcontrol.wait: the kernel before may still be running", direction(write), size,
                      describe_address(address), describe_thread(t)),
          pc);
  }
  Counters& counters = grid->report.counters;
  counters.global_bytes += size;
  (write ? counters.global_write_bytes : counters.global_read_bytes) += size;
  if (!r->bytes.empty()) {
    uint8_t* state = &r->bytes[address - r->begin];
    uint32_t unwritten = 0;
    for (uint32_t i = 0; i < size; ++i) {
      unwritten += state[i] == kUnwritten;
      if (write) state[i] = kWritten;
    }
    if (!write) check_written(t, address, size, unwritten, pc);
  }
  const uint32_t packed = pack_pc(pc);
  if (!r->options.read_only) {
    const AccessInfo now{address, size, write, atomic, pc};
    for (uintptr_t word = address & ~uintptr_t{3}; word < address + size; word += 4) {
      touch_word(t, r->cell(word), word, address, size, now, packed);
    }
    if (write) grid->idle_turns = 0;
  }
  if (grid->count) {
    count_least(*r, address, size, write);
    log_access(t, address, size, false, packed);
  }
}

void observe(uintptr_t address, uint32_t size, bool write, uintptr_t pc) {
  Unobserved hidden;
  Thread& t = *running;
  if (Block* owner = owner_of(t, address)) {
    observe_shared(t, *owner, static_cast<uint32_t>(address - reinterpret_cast<uintptr_t>(owner->arena)), size, write, pc);
  } else {
    observe_global(t, address, size, write, pc);
  }
}

void lane_reads_shared(int lane, uint32_t address, int bytes, void* to) {
  Thread& t = running->block->threads[running->warp->index * 32 + static_cast<uint32_t>(lane)];
  const uintptr_t pc = t.waiting == Waiting::warp ? t.waiting_pc : CALLER;
  check_aligned(address, static_cast<uint32_t>(bytes), pc, "matrix read");
  if (address + static_cast<size_t>(bytes) > t.block->arena_bytes) {
    fault(FaultKind::out_of_bounds, fmt::format("matrix read at shared address {:#x} by {}", address, describe_thread(t)), pc);
  }
  observe_shared(t, *t.block, address, static_cast<uint32_t>(bytes), false, pc);
  std::memcpy(to, t.block->arena + address, static_cast<size_t>(bytes));
}

void lane_writes_shared(int lane, uint32_t address, int bytes, const void* from) {
  Thread& t = running->block->threads[running->warp->index * 32 + static_cast<uint32_t>(lane)];
  const uintptr_t pc = t.waiting == Waiting::warp ? t.waiting_pc : CALLER;
  check_aligned(address, static_cast<uint32_t>(bytes), pc, "matrix write");
  if (address + static_cast<size_t>(bytes) > t.block->arena_bytes) {
    fault(FaultKind::out_of_bounds, fmt::format("matrix write at shared address {:#x} by {}", address, describe_thread(t)), pc);
  }
  observe_shared(t, *t.block, address, static_cast<uint32_t>(bytes), true, pc);
  std::memcpy(t.block->arena + address, from, static_cast<size_t>(bytes));
}

void prefetch(const void*) {}

namespace {
void observe_vector(const void* p, int bytes, bool write, uintptr_t pc) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (current == nullptr || address - current_stack < kStackBytes) return;
  Unobserved hidden;
  check_aligned(address, static_cast<uint32_t>(bytes), pc, direction(write));
  observe(address, static_cast<uint32_t>(bytes), write, pc);
}
}  // namespace

void store_vector(void* p, const void* value, int bytes) {
  observe_vector(p, bytes, true, CALLER);
  std::memcpy(p, value, static_cast<size_t>(bytes));
}

void load_vector(const void* p, void* value, int bytes) {
  observe_vector(p, bytes, false, CALLER);
  std::memcpy(value, p, static_cast<size_t>(bytes));
}

// ---- asynchronous copies

void copy_async(uint32_t shared, const void* global, int bytes, int source_bytes) {
  Unobserved hidden;
  Thread& t = *running;
  Block& block = *t.block;
  const uintptr_t pc = CALLER;
  const auto source = reinterpret_cast<uintptr_t>(global);
  ++grid->report.counters.async_copies;
  if (source_bytes < 0 || source_bytes > bytes) {
    fault(FaultKind::limit, fmt::format("cp.async of {} bytes out of {}", source_bytes, bytes), pc);
  }
  if (shared % static_cast<uint32_t>(bytes) != 0) {
    fault(FaultKind::misaligned, fmt::format("cp.async of {} bytes to {}, which is not a multiple of {}", bytes,
                                             describe_address(reinterpret_cast<uintptr_t>(block.arena) + shared), bytes), pc);
  }
  if (source_bytes != 0) check_aligned(source, static_cast<uint32_t>(bytes), pc, "cp.async source");
  if (shared + static_cast<size_t>(bytes) > block.arena_bytes) {
    fault(FaultKind::out_of_bounds, fmt::format("cp.async to shared address {:#x} by {}", shared, describe_thread(t)), pc);
  }
  Copy copy{shared, global, static_cast<uint8_t>(bytes), static_cast<uint8_t>(source_bytes), (next_random() & 3) == 0, pack_pc(pc), {}};
  // The target changes at some time from here on: a write now for whoever still reads it.
  observe_shared(t, *t.block, shared, static_cast<uint32_t>(bytes), true, pc);
  std::memset(&block.states[shared], kPending, static_cast<size_t>(bytes));
  std::memset(block.arena + shared, 0xff, static_cast<size_t>(bytes));
  if (source_bytes != 0) {
    observe_global(t, source, static_cast<uint32_t>(source_bytes), false, pc);
    if (copy.early) std::memcpy(copy.data, global, static_cast<size_t>(source_bytes));
  }
  t.copies.push_back(copy);
  ++t.uncommitted;
}

void copy_async_commit() {
  Unobserved hidden;
  Thread& t = *running;
  t.groups.push_back(t.uncommitted);
  t.uncommitted = 0;
}

void copy_async_wait(int pending) {
  Unobserved hidden;
  Thread& t = *running;
  size_t land = 0;
  while (t.groups.size() > static_cast<size_t>(pending)) {
    land += t.groups.front();
    t.groups.pop_front();
  }
  Block& block = *t.block;
  for (size_t i = 0; i < land; ++i) {
    Copy& copy = t.copies[i];
    if (!copy.early) std::memcpy(copy.data, copy.global, copy.source_bytes);
    std::memset(copy.data + copy.source_bytes, 0, static_cast<size_t>(copy.bytes - copy.source_bytes));
    std::memcpy(block.arena + copy.offset, copy.data, copy.bytes);
    std::memset(&block.states[copy.offset], kWritten, copy.bytes);
    for (uint32_t word = copy.offset; word < copy.offset + copy.bytes; word += 4) {
      Cell& cell = block.cells[word / 4];
      const Access landed{t.who, t.epoch, copy.pc};
      if (cell.write.who == Access::kSplit) {
        for (Cell& c : grid->splits[cell.write.epoch_bits].bytes) c.write = landed;
      } else {
        cell.write = landed;
      }
    }
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<long>(land));
}

void check_exit(Thread& t) {
  if (!t.copies.empty()) {
    fault(FaultKind::in_flight_at_exit,
          fmt::format("{} exits with {} cp.async in flight that it never waited for\n    the first was issued", describe_thread(t), t.copies.size()),
          unpack_pc(t.copies.front().pc));
  }
}

// ---- atomics, orders, fences

namespace {

// All that this thread knows and has done, as others may learn it; what it does from now on is not in it.
WorldRef snapshot(Thread& t) {
  WorldRef world(t.world ? new World(*t.world.get()) : new World());
  world->references = 1;
  KnowledgeRef known(new Knowledge(*t.known.get()));
  known->references = 1;
  known->learn(t.index, t.epoch);
  world->learn(t.block->number, known);
  t.epoch = ++t.block->now;
  return world;
}

void take_in(Thread& t, const WorldRef& world) {
  if (!world) return;
  for (const auto& [block, knowledge] : world->blocks) {
    if (block == t.block->number) {
      t.known = joined(t.known, knowledge);
      continue;
    }
    const Knowledge* have = t.world ? t.world->find(block) : nullptr;
    if (have != nullptr && have->dominates(*knowledge.get())) continue;
    WorldRef mine(t.world ? new World(*t.world.get()) : new World());
    mine->references = 1;
    mine->learn(block, knowledge);
    t.world = mine;
  }
}

bool acquires(Order order) { return order == Order::acquire || order == Order::acq_rel; }
bool releases(Order order) { return order == Order::release || order == Order::acq_rel; }

void acquire_from(Thread& t, SyncObject& object, Order order, Scope scope) {
  for (const SyncObject::Entry& e : object.entries) {
    const bool same_block = e.block == t.block->number;
    if (!same_block && (e.scope != Scope::gpu || scope != Scope::gpu)) continue;
    if (acquires(order)) {
      take_in(t, e.world);
    } else {
      WorldRef& seen = same_block ? t.seen_in_block : t.seen_elsewhere;
      seen = joined(seen, e.world);
    }
  }
}

void release_to(Thread& t, SyncObject& object, Order order, Scope scope, bool continues_sequence) {
  if (!continues_sequence) object.entries.clear();
  auto add = [&](Scope s, const WorldRef& world) {
    if (!world) return;
    for (SyncObject::Entry& e : object.entries) {
      if (e.block == t.block->number && e.scope == s) {
        e.world = joined(e.world, world);
        return;
      }
    }
    object.entries.push_back({t.block->number, s, world});
  };
  if (releases(order)) {
    add(scope, snapshot(t));
  } else {
    add(Scope::block, t.fence_published[static_cast<int>(Scope::block)]);
    if (scope == Scope::gpu) add(Scope::gpu, t.fence_published[static_cast<int>(Scope::gpu)]);
  }
}

void observe_atomic(Thread& t, uintptr_t address, uint32_t size, bool write, uintptr_t pc) {
  ++grid->report.counters.atomics;
  check_aligned(address, size, pc, "atomic access");
  // Read and write: the read finds uninitialised words.
  if (Block* owner = owner_of(t, address)) {
    const auto offset = static_cast<uint32_t>(address - reinterpret_cast<uintptr_t>(owner->arena));
    if (write) observe_shared(t, *owner, offset, size, false, pc, true);
    observe_shared(t, *owner, offset, size, write, pc, true);
  } else {
    if (write) observe_global(t, address, size, false, pc, true);
    observe_global(t, address, size, write, pc, true);
  }
}

template <class T> T combine(Rmw operation, T old, T operand, T compare) {
  switch (operation) {
    case Rmw::add: return old + operand;
    case Rmw::exchange: return operand;
    case Rmw::minimum: return operand < old ? operand : old;
    case Rmw::maximum: return old < operand ? operand : old;
    case Rmw::compare_exchange: return old == compare ? operand : old;
    default: break;
  }
  if constexpr (std::is_integral_v<T>) {
    if (operation == Rmw::bit_and) return old & operand;
    if (operation == Rmw::bit_or) return old | operand;
    if (operation == Rmw::bit_xor) return old ^ operand;
  }
  return old;
}

template <class T> uint64_t apply(void* p, Rmw operation, uint64_t operand, uint64_t compare) {
  T old;
  std::memcpy(&old, p, sizeof(T));
  const T now = combine<T>(operation, old, narrow<T>(operand), narrow<T>(compare));
  if (std::memcmp(&old, &now, sizeof(T)) != 0) grid->idle_turns = 0;
  std::memcpy(p, &now, sizeof(T));
  return widen(old);
}

}  // namespace

namespace {
uint64_t atomic_at(uintptr_t pc, void* p, Rmw operation, Number type, uint64_t operand, uint64_t compare, Order order, Scope scope) {
  Unobserved hidden;
  Thread& t = *running;
  if ((next_random() & 3) == 0) give_turn(t);
  const uint32_t size = type == Number::u16 ? 2 : type == Number::u32 || type == Number::s32 || type == Number::f32 ? 4 : 8;
  const auto address = reinterpret_cast<uintptr_t>(p);
  const uint64_t idle = grid->idle_turns;
  observe_atomic(t, address, size, true, pc);
  grid->idle_turns = idle;
  SyncObject& object = grid->sync_objects[address];
  acquire_from(t, object, order, scope);
  release_to(t, object, order, scope, true);
  switch (type) {
    case Number::u32: return apply<uint32_t>(p, operation, operand, compare);
    case Number::s32: return apply<int32_t>(p, operation, operand, compare);
    case Number::u64: return apply<uint64_t>(p, operation, operand, compare);
    case Number::s64: return apply<int64_t>(p, operation, operand, compare);
    case Number::f32: return apply<float>(p, operation, operand, compare);
    case Number::f64: return apply<double>(p, operation, operand, compare);
    case Number::u16: return apply<uint16_t>(p, operation, operand, compare);
  }
  return 0;
}
}  // namespace

uint64_t atomic(void* p, Rmw operation, Number type, uint64_t operand, uint64_t compare, Order order, Scope scope) {
  return atomic_at(CALLER, p, operation, type, operand, compare, order, scope);
}

uint32_t atomic_add_u32(uint32_t* p, uint32_t v, Order order, Scope scope) {
  return static_cast<uint32_t>(atomic_at(CALLER, p, Rmw::add, Number::u32, v, 0, order, scope));
}

uint32_t atomic_load_u32(const uint32_t* p, Order order, Scope scope) {
  Unobserved hidden;
  Thread& t = *running;
  const uintptr_t pc = CALLER;
  give_turn(t);
  observe_atomic(t, reinterpret_cast<uintptr_t>(p), 4, false, pc);
  if (auto it = grid->sync_objects.find(reinterpret_cast<uintptr_t>(p)); it != grid->sync_objects.end()) {
    acquire_from(t, it->second, order, scope);
  }
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

void atomic_store_u32(uint32_t* p, uint32_t v, Order order, Scope scope) {
  Unobserved hidden;
  Thread& t = *running;
  const uintptr_t pc = CALLER;
  const auto address = reinterpret_cast<uintptr_t>(p);
  ++grid->report.counters.atomics;
  check_aligned(address, 4, pc, "atomic store");
  if (in_arena(*t.block, address)) {
    observe_shared(t, *t.block, static_cast<uint32_t>(address - reinterpret_cast<uintptr_t>(t.block->arena)), 4, true, pc, true);
  } else {
    observe_global(t, address, 4, true, pc, true);
  }
  release_to(t, grid->sync_objects[address], order, scope, false);
  std::memcpy(p, &v, 4);
  grid->idle_turns = 0;
}

void fence(Scope scope) {
  Unobserved hidden;
  Thread& t = *running;
  take_in(t, t.seen_in_block);
  t.seen_in_block = WorldRef();
  if (scope == Scope::gpu) {
    take_in(t, t.seen_elsewhere);
    t.seen_elsewhere = WorldRef();
  }
  const WorldRef world = snapshot(t);
  t.fence_published[static_cast<int>(Scope::block)] = world;
  if (scope == Scope::gpu) t.fence_published[static_cast<int>(Scope::gpu)] = world;
}

// ---- arithmetic

void matrix_multiply_add(DType type, int m, int n, int k, const uint16_t* a, const uint16_t* b, float* c) {
  multiply_add(kMatrixModels[matrix_model], type, m, n, k, a, b, c);
}

namespace {

float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }

// The same argument always errs the same way, as in hardware: a hash of it picks the error within `bound`.
double error_of(float x, double bound) {
  uint64_t z = float_bits(x) * 0x9e3779b97f4a7c15ull;
  z ^= z >> 29;
  z *= 0xbf58476d1ce4e5b9ull;
  return bound * (static_cast<double>(z >> 11) * 0x1p-52 - 1.0);
}

}  // namespace

float approximate(Approximation function, float x) {
  Unobserved hidden;
  const double v = x;
  double exact = 0, absolute = 0, relative = 0;
  switch (function) {
    case Approximation::ex2: exact = std::exp2(static_cast<double>(flushed(x))); relative = 0x1p-23; break;
    case Approximation::lg2: exact = std::log2(static_cast<double>(flushed(x))); absolute = 0x1p-23; break;
    case Approximation::rcp: exact = 1.0 / static_cast<double>(flushed(x)); relative = 0x1p-24; break;
    case Approximation::rsqrt: exact = 1.0 / std::sqrt(static_cast<double>(flushed(x))); relative = 0x1p-24; break;
    case Approximation::tanh: exact = std::tanh(v); relative = 0x1p-11; break;
  }
  if (!std::isfinite(exact) || exact == 0.0) return static_cast<float>(exact);
  // Exact where the unit is: powers of two of integers, logarithms of powers of two.
  const bool simple = (function == Approximation::ex2 && v == std::nearbyint(v)) || (function == Approximation::lg2 && exact == std::nearbyint(exact)) ||
                      (function == Approximation::rcp && std::ilogb(v) == std::logb(v) && std::fabs(v) == std::ldexp(1.0, std::ilogb(v)));
  const double wrong = simple ? exact : exact * (1.0 + error_of(x, relative)) + error_of(x, absolute);
  const float result = static_cast<float>(wrong);
  return function == Approximation::tanh ? result : flushed(result);
}

}  // namespace fulmen::emulator

// ---- the hooks that -fsanitize=thread calls before every load and store

using namespace fulmen::emulator;

#define HOOK_PC reinterpret_cast<uintptr_t>(__builtin_return_address(0))

namespace {
inline bool unobserved(uintptr_t address) { return current == nullptr || address - current_stack < kStackBytes; }
inline void plain(const void* p, uint32_t size, bool write, uintptr_t pc) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (unobserved(address)) return;
  if ((address & (size - 1)) != 0) {
    Unobserved hidden;
    check_aligned(address, size, pc, write ? "write" : "read");
  }
  observe(address, size, write, pc);
}
inline void range(const void* p, size_t size, bool write, uintptr_t pc) {
  auto address = reinterpret_cast<uintptr_t>(p);
  if (size == 0 || unobserved(address)) return;
  observe(address, static_cast<uint32_t>(size), write, pc);
}
inline void strong(const void* p, uint32_t size, bool write, uintptr_t pc) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (unobserved(address)) return;
  Unobserved hidden;
  Thread& t = *running;
  if (!write) give_turn(t);
  check_aligned(address, size, pc, write ? "volatile write" : "volatile read");
  if (in_arena(*t.block, address)) {
    observe_shared(t, *t.block, static_cast<uint32_t>(address - reinterpret_cast<uintptr_t>(t.block->arena)), size, write, pc, true);
  } else {
    observe_global(t, address, size, write, pc, true);
  }
}
}  // namespace

extern "C" {
#define HOOKS(n)                                                                                                     \
  void __tsan_read##n(void* p) { plain(p, n, false, HOOK_PC); }                                                      \
  void __tsan_write##n(void* p) { plain(p, n, true, HOOK_PC); }                                                      \
  void __tsan_volatile_read##n(void* p) { strong(p, n, false, HOOK_PC); }                                            \
  void __tsan_volatile_write##n(void* p) { strong(p, n, true, HOOK_PC); }                                            \
  void __tsan_unaligned_read##n(void* p) { range(p, n, false, HOOK_PC); }                                            \
  void __tsan_unaligned_write##n(void* p) { range(p, n, true, HOOK_PC); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
#undef HOOKS
void __tsan_read_range(void* p, size_t size) { range(p, size, false, HOOK_PC); }
void __tsan_write_range(void* p, size_t size) { range(p, size, true, HOOK_PC); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// And those of -fsanitize=bounds: the index of an array that is a local or a member.
[[noreturn]] void __ubsan_handle_out_of_bounds_abort(void*, void* index) {
  if (running == nullptr) __builtin_trap();
  fault(FaultKind::out_of_bounds, fmt::format("index {} of a local array", static_cast<int>(reinterpret_cast<intptr_t>(index))), HOOK_PC);
}

// Host code of a test's unit may use std::atomic; kernels may not.
static void only_host(uintptr_t pc) {
  if (current == nullptr) return;
  Unobserved hidden;
  fault(FaultKind::limit, "a host atomic in a kernel: use the device's atomics", pc);
}
#define ATOMICS(bits, T)                                                                                             \
  T __tsan_atomic##bits##_load(const volatile T* p, int) {                                                           \
    only_host(HOOK_PC);                                                                                              \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                                     \
  }                                                                                                                  \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) {                                                        \
    only_host(HOOK_PC);                                                                                              \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                                        \
  }                                                                                                                  \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }  \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }  \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }  \
  T __tsan_atomic##bits##_fetch_and(volatile T* p, T v, int) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }  \
  T __tsan_atomic##bits##_fetch_or(volatile T* p, T v, int) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }    \
  T __tsan_atomic##bits##_fetch_xor(volatile T* p, T v, int) { return __atomic_fetch_xor(p, v, __ATOMIC_SEQ_CST); }  \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T v, int, int) {                     \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                   \
  }                                                                                                                  \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* expected, T v, int, int) {                       \
    return __atomic_compare_exchange_n(p, expected, v, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                    \
  }
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
#undef ATOMICS
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}
}
