// Warp collectives: lanes that wait for each other, shuffles, votes, and instructions that a whole warp executes.
#include <fmt/format.h>

#include <bit>

#include "emulator/runtime.hpp"

namespace fulmen::emulator {

namespace {

// All lanes of `lanes` now know what each knew, and each other up to now.
void synchronise_lanes(Warp& warp, uint32_t lanes) {
  Block& block = *warp.block;
  Thread* first = &block.threads[warp.index * 32];
  KnowledgeRef known;
  WorldRef world;
  uint32_t last = 0;
  bool resolved = false;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    Thread& t = first[std::countr_zero(rest)];
    known = known ? joined(known, t.known) : t.known;
    world = world ? joined(world, t.world) : t.world;
    last = std::max(last, t.epoch);
    resolved |= t.resolved;
  }
  KnowledgeRef after(new Knowledge(*known));
  if ((lanes & warp.live) == warp.live) {
    after->warps[warp.index] = std::max(after->warps[warp.index], last);
  } else {
    for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
      Thread& t = first[std::countr_zero(rest)];
      after->learn(t.index, t.epoch);
    }
  }
  const uint32_t now = ++block.now;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    Thread& t = first[std::countr_zero(rest)];
    t.known = after;
    t.world = world;
    t.epoch = now;
    t.resolved = resolved;
  }
}

void complete_collective(Warp& warp, size_t at) {
  Collective done = warp.collectives[at];
  warp.collectives.erase(warp.collectives.begin() + static_cast<long>(at));
  if (!warp.log.empty()) flush_log(warp);
  grid->idle_turns = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((done.arrived >> lane & 1u) == 0) done.operands[lane] = nullptr;
  }
  done.meaning(done.operands, done.meaning_context);
  Thread* first = &warp.block->threads[warp.index * 32];
  for (uint32_t rest = done.arrived; rest != 0; rest &= rest - 1) first[std::countr_zero(rest)].waiting = Waiting::nothing;
  enqueue(warp, done.arrived);
}

// Waits until every live lane of `mask` has come to the same instruction; the last one runs `meaning`.
void arrive_at_collective(Thread& t, const char* name, bool aligned, uint32_t mask, void* operands, LaneMeaning meaning,
                          void* meaning_context, uintptr_t pc) {
  Warp& warp = *t.warp;

  const uint32_t bit = 1u << t.lane;
  ++grid->report.counters.warp_collectives;
  if ((mask & bit) == 0) {
    fault(FaultKind::divergent, fmt::format("{}: the mask {:#010x} does not name the calling lane {}", name, mask, t.lane), pc);
  }
  if (aligned && warp.live != 0xffffffffu) {
    fault(FaultKind::divergent, fmt::format("{} needs the whole warp, but only {} are live", name, lanes_text(warp.live)), pc);
  }
  size_t at = 0;
  for (; at < warp.collectives.size(); ++at) {
    Collective& c = warp.collectives[at];
    if (c.mask == mask && c.name == name && (c.arrived & bit) == 0) break;
    if ((c.mask & bit) != 0 || (c.arrived & mask) != 0) {
      fault(FaultKind::divergent,
            fmt::format("lane {} comes to {} with mask {:#010x}, but {} wait at {} with mask {:#010x}\n    at {}", t.lane, name,
                        mask, lanes_text(c.arrived), c.name, c.mask, where(c.pc)),
            pc);
    }
  }
  if (at == warp.collectives.size()) {
    warp.collectives.emplace_back();
    Collective& c = warp.collectives.back();
    c.name = name;
    c.aligned = aligned;
    c.mask = mask;
    c.pc = pc;
  }
  Collective& c = warp.collectives[at];
  if (aligned && c.pc != pc && !same_place(c.pc, pc)) {
    fault(FaultKind::divergent,
          fmt::format("lane {} executes {} at another place than {} of its warp do\n    at {}", t.lane, name,
                      lanes_text(c.arrived), where(c.pc)),
          pc);
  }
  c.arrived |= bit;
  c.operands[t.lane] = operands;
  c.meaning = meaning;
  c.meaning_context = meaning_context;  // on the stack of a lane that is here
  if (c.arrived != (mask & warp.live)) {
    t.waiting = Waiting::warp;
    t.waiting_for = name;
    t.waiting_pc = pc;
    wait_for_turn(t);
    return;
  }
  complete_collective(warp, at);
}

struct ShuffleLane {
  Shuffle kind;
  uint64_t value;
  uint32_t operand;
  int width;
  uint64_t result;
};

void shuffle_meaning(void* const* lanes, void*) {
  for (int lane = 0; lane < 32; ++lane) {
    auto* mine = static_cast<ShuffleLane*>(lanes[lane]);
    if (mine == nullptr) continue;
    const int width = mine->width, base = lane & ~(width - 1);
    int source = lane;
    switch (mine->kind) {
      case Shuffle::index: source = base | static_cast<int>(mine->operand & static_cast<uint32_t>(width - 1)); break;
      case Shuffle::up: source = lane - static_cast<int>(mine->operand) < base ? lane : lane - static_cast<int>(mine->operand); break;
      case Shuffle::down: source = lane + static_cast<int>(mine->operand) >= base + width ? lane : lane + static_cast<int>(mine->operand); break;
      case Shuffle::exclusive_or: source = (lane ^ static_cast<int>(mine->operand)) >= base + width ? lane : lane ^ static_cast<int>(mine->operand); break;
    }
    const auto* from = static_cast<const ShuffleLane*>(lanes[source & 31]);
    mine->result = from != nullptr ? from->value : 0xffffffffffffffffull;  // a lane that takes no part gives garbage
  }
}

struct VoteLane {
  Vote kind;
  uint32_t value;
  uint32_t result;
};

void vote_meaning(void* const* lanes, void*) {
  const VoteLane* first = nullptr;
  uint32_t result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    const auto* mine = static_cast<const VoteLane*>(lanes[lane]);
    if (mine == nullptr) continue;
    const uint32_t v = mine->value;
    if (first == nullptr) {
      first = mine;
      result = mine->kind == Vote::ballot ? (v != 0 ? 1u << lane : 0u) : v;
      continue;
    }
    switch (mine->kind) {
      case Vote::ballot: result |= v != 0 ? 1u << lane : 0u; break;
      case Vote::any: case Vote::bit_or: result |= v; break;
      case Vote::all: case Vote::bit_and: result &= v; break;
      case Vote::bit_xor: result ^= v; break;
      case Vote::add: result += v; break;
      case Vote::minimum: result = std::min(result, v); break;
      case Vote::maximum: result = std::max(result, v); break;
      case Vote::minimum_signed: result = static_cast<uint32_t>(std::min(static_cast<int32_t>(result), static_cast<int32_t>(v))); break;
      case Vote::maximum_signed: result = static_cast<uint32_t>(std::max(static_cast<int32_t>(result), static_cast<int32_t>(v))); break;
      case Vote::match: break;
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto* mine = static_cast<VoteLane*>(lanes[lane]);
    if (mine == nullptr) continue;
    mine->result = result;
    if (mine->kind == Vote::match) {
      mine->result = 0;
      for (int other = 0; other < 32; ++other) {
        const auto* theirs = static_cast<const VoteLane*>(lanes[other]);
        if (theirs != nullptr && theirs->value == mine->value) mine->result |= 1u << other;
      }
    }
  }
}

const char* shuffle_name(Shuffle kind) {
  static const char* const names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
  return names[static_cast<int>(kind)];
}
const char* vote_name(Vote kind) {
  static const char* const names[] = {"__ballot_sync", "__any_sync", "__all_sync", "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync",
                                      "__reduce_min_sync (int)", "__reduce_max_sync (int)", "__reduce_and_sync", "__reduce_or_sync",
                                      "__reduce_xor_sync", "__match_any_sync"};
  return names[static_cast<int>(kind)];
}

}  // namespace

// Those that waited for a lane which exits may be complete without it (CUDA: all non-exited lanes of the mask take part).
void leave_collectives(Thread& t) {
  Warp& warp = *t.warp;
  const uint32_t bit = 1u << t.lane;
  for (size_t i = 0; i < warp.collectives.size();) {
    Collective& c = warp.collectives[i];
    if ((c.mask & bit) != 0 && c.aligned) {
      fault(FaultKind::divergent,
            fmt::format("lane {} exits, but {} of its warp wait for it at {}\n    at {}", t.lane, lanes_text(c.arrived), c.name, where(c.pc)));
    }
    if ((c.mask & bit) != 0 && c.arrived == (c.mask & warp.live)) {
      complete_collective(warp, i);
    } else {
      ++i;
    }
  }
}

void warp_arrive(const char* name, void* operands, LaneMeaning meaning, void* meaning_context) {
  Unobserved hidden;
  Thread& t = calling();
  if (t.lane == 0 && name[0] == 'm') ++grid->report.counters.matrix_instructions;
  arrive_at_collective(t, name, true, 0xffffffffu, operands, meaning, meaning_context, CALLER);
}

uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t value, uint32_t operand, int width) {
  Unobserved hidden;
  ShuffleLane mine{kind, value, operand, width, 0};
  arrive_at_collective(calling(), shuffle_name(kind), false, mask, &mine, shuffle_meaning, nullptr, CALLER);
  return mine.result;
}

uint32_t vote(Vote kind, uint32_t mask, uint32_t value) {
  Unobserved hidden;
  VoteLane mine{kind, value, 0};
  arrive_at_collective(calling(), vote_name(kind), false, mask, &mine, vote_meaning, nullptr, CALLER);
  return mine.result;
}

uint32_t active_mask() {
  Unobserved hidden;
  return 1u << calling().lane;  // the least that the model promises
}

void warp_sync(uint32_t mask) {
  Unobserved hidden;
  Thread& t = calling();
  struct Who {
    Warp* warp;
    uint32_t mask;
  } who{t.warp, mask};
  arrive_at_collective(
      t, "__syncwarp", false, mask, nullptr,
      [](void* const*, void* of) {
        const Who* w = static_cast<const Who*>(of);
        synchronise_lanes(*w->warp, w->mask & w->warp->live);
      },
      &who, CALLER);
}

}  // namespace fulmen::emulator
