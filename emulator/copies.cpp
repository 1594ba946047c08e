// Asynchronous copies: they land at the wait and not before.
#include <fmt/format.h>

#include "emulator/runtime.hpp"

namespace fulmen::emulator {

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

}  // namespace fulmen::emulator
