// Lanes' accesses put together as the hardware would have seen them: bank conflicts, sectors, the least that a kernel must move.
#include <algorithm>

#include "emulator/runtime.hpp"

namespace fulmen::emulator {

namespace {

uint32_t log_occurrence(const Warp& warp, uint32_t pc, uint32_t lane) {
  uint32_t n = 0;
  for (const LoggedAccess& a : warp.log) n += a.pc == pc && a.lane == lane;
  return n;
}

uint64_t count_distinct(std::vector<uintptr_t>& values) {
  std::sort(values.begin(), values.end());
  return static_cast<uint64_t>(std::unique(values.begin(), values.end()) - values.begin());
}

}  // namespace

void log_access(Thread& t, uintptr_t address, uint32_t size, bool shared, uint32_t packed_pc) {
  Warp& warp = *t.warp;
  // A lane's accesses come in a run; its occurrences are counted backwards only as far as needed.
  if (warp.log.size() > 8192) flush_log(warp);
  warp.log.push_back({packed_pc, log_occurrence(warp, packed_pc, t.lane), t.lane, size, address, shared});
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

}  // namespace fulmen::emulator
