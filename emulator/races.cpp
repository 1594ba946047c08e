// The race detector: who has touched a word last, and whether that is ordered before whoever touches it now.
#include <fmt/format.h>

#include "emulator/runtime.hpp"

namespace fulmen::emulator {

namespace {

const char* access_word(bool write, bool atomic) { return atomic ? "atomic access" : write ? "write" : "read"; }

bool covered(const Thread& t, const Access& a) {
  if (a.who == t.who) return true;
  if (a.block() == t.block->number) return t.known->covers(a.thread(), a.epoch());
  if (!t.world) return false;
  const Knowledge* k = t.world->find(a.block());
  return k != nullptr && k->covers(a.thread(), a.epoch());
}

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

void touch(Thread& t, Cell& cell, const AccessInfo& now) {
  const Access mine{t.who, t.epoch | (now.atomic ? Access::kAtomic : 0), now.packed_pc};
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

}  // namespace

void touch_word(Thread& t, Cell& cell, uintptr_t word, uintptr_t address, const AccessInfo& now) {
  const bool whole = address <= word && address + now.size >= word + 4;
  if (cell.write.who != Access::kSplit) {
    if (whole) {
      touch(t, cell, now);
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
  const uintptr_t first = std::max(address, word), last = std::min(address + now.size, word + 4);
  for (uintptr_t b = first; b < last; ++b) touch(t, grid->splits[cell.write.epoch_bits].bytes[b - word], now);
}

}  // namespace fulmen::emulator
