// What each load and store of a kernel goes through: bounds, alignment, unwritten bytes, copies in flight, the race detector, counters.
#include <fmt/format.h>

#include "emulator/runtime.hpp"

namespace fulmen::emulator {

namespace {

const char* direction(bool write) { return write ? "write" : "read"; }

// A struct is copied with the padding between its members, which nobody writes: only one that is wholly unwritten is a fault.
// Whatever a machine register holds has no padding.
void check_written(Thread& t, uintptr_t address, uint32_t size, uint32_t unwritten, uintptr_t pc) {
  const bool one_register = size <= 16 && (size & (size - 1)) == 0;
  if (unwritten == 0 || (!one_register && unwritten < size)) return;
  fault(FaultKind::uninitialised,
        fmt::format("read of {} bytes at {} by {}: {} of them were never written", size, describe_address(address), describe_thread(t), unwritten), pc);
}

}  // namespace

void check_aligned(uintptr_t address, uint32_t size, uintptr_t pc, const char* what) {
  if ((address & (size - 1)) != 0) {
    fault(FaultKind::misaligned, fmt::format("{} of {} bytes at {}, which is not a multiple of {}", what, size, describe_address(address), size), pc);
  }
}

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
  const AccessInfo now{address, size, write, atomic, pc, pack_pc(pc)};
  for (uint32_t word = offset & ~3u; word < offset + size; word += 4) {
    touch_word(t, block.cells[word / 4], word, offset, now);
  }
  if (grid->count && &block == t.block) log_access(t, offset, size, true, now.packed_pc);
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
  const AccessInfo now{address, size, write, atomic, pc, pack_pc(pc)};
  if (!r->options.read_only) {
    for (uintptr_t word = address & ~uintptr_t{3}; word < address + size; word += 4) {
      touch_word(t, r->cell(word), word, address, now);
    }
    if (write) grid->idle_turns = 0;
  }
  if (grid->count) {
    count_least(*r, address, size, write);
    log_access(t, address, size, false, now.packed_pc);
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

namespace {
// Where a lane's bytes of a matrix lie in shared memory, looked at as any access is.
unsigned char* lane_bytes(int lane, uint32_t address, int bytes, bool write, uintptr_t caller) {
  Thread& t = running->block->threads[running->warp->index * 32 + static_cast<uint32_t>(lane)];
  const uintptr_t pc = t.waiting == Waiting::warp ? t.waiting_pc : caller;
  const char* what = write ? "matrix write" : "matrix read";
  check_aligned(address, static_cast<uint32_t>(bytes), pc, what);
  if (address + static_cast<size_t>(bytes) > t.block->arena_bytes) {
    fault(FaultKind::out_of_bounds, fmt::format("{} at shared address {:#x} by {}", what, address, describe_thread(t)), pc);
  }
  observe_shared(t, *t.block, address, static_cast<uint32_t>(bytes), write, pc);
  return reinterpret_cast<unsigned char*>(t.block->arena) + address;
}
}  // namespace

void lane_reads_shared(int lane, uint32_t address, int bytes, void* to) {
  std::memcpy(to, lane_bytes(lane, address, bytes, false, CALLER), static_cast<size_t>(bytes));
}

void lane_writes_shared(int lane, uint32_t address, int bytes, const void* from) {
  std::memcpy(lane_bytes(lane, address, bytes, true, CALLER), from, static_cast<size_t>(bytes));
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

}  // namespace fulmen::emulator
