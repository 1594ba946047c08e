// Barriers of a block: __syncthreads and the named ones.
#include <fmt/format.h>

#include <bit>

#include "emulator/runtime.hpp"

namespace fulmen::emulator {

namespace {

void complete_barrier(Block& block, Barrier& barrier) {
  const BlockVote kind = barrier.kind;
  grid->idle_turns = 0;
  KnowledgeRef after(barrier.known ? new Knowledge(*barrier.known) : new Knowledge());
  bool everybody = true;
  for (Warp& warp : block.warps) {
    everybody &= barrier.waiting[warp.index] == warp.live;
    if (!warp.log.empty()) flush_log(warp);
  }
  if (everybody) {
    after = KnowledgeRef(new Knowledge());
    after->floor = block.now;
  } else {
    for (uint32_t w = 0; w < block.warps.size(); ++w) after->warps[w] = std::max(after->warps[w], barrier.warp_epoch[w]);
  }
  const uint32_t now = ++block.now;
  int result = 0;
  if (kind == BlockVote::count) result = barrier.count;
  if (kind == BlockVote::any) result = barrier.count > 0;
  if (kind == BlockVote::all) result = barrier.count == barrier.voters;
  for (Warp& warp : block.warps) {
    for (uint32_t rest = barrier.waiting[warp.index]; rest != 0; rest &= rest - 1) {
      Thread& t = block.threads[warp.index * 32 + static_cast<uint32_t>(std::countr_zero(rest))];
      t.known = after;
      t.world = barrier.world;
      t.epoch = now;
      t.resolved = t.resolved || barrier.resolved;
      t.result = result;
      t.waiting_barrier = -1;
      wake(t);
    }
  }
  barrier.reset();
}

bool barrier_is_complete(const Block& block, const Barrier& barrier) {
  if (barrier.whole_block) {
    bool any = false;
    for (const Warp& warp : block.warps) {
      if (barrier.arrived[warp.index] != warp.live) return false;
      any |= warp.live != 0;
    }
    return any;
  }
  return barrier.expected != 0 && barrier.arrived_threads >= barrier.expected;
}

void arrive_at_barrier(Thread& t, int id, uint32_t threads, bool waits, BlockVote kind, int predicate, const char* name, uintptr_t pc) {
  Block& block = *t.block;
  Warp& warp = *t.warp;
  ++grid->report.counters.barrier_waits;
  if (id < 0 || id > 15) fault(FaultKind::limit, fmt::format("{}: barrier {} (a block has 0 to 15)", name, id), pc);
  const bool whole_block = threads == 0;
  if (!whole_block && (threads % 32 != 0 || threads > block.threads.size())) {
    fault(FaultKind::limit, fmt::format("{}: {} threads: expected a multiple of 32 up to the block's {}", name, threads, block.threads.size()), pc);
  }
  Barrier& barrier = block.barriers[id];
  if (barrier.pc == 0) {
    barrier.pc = pc;
    barrier.kind = kind;
    barrier.expected = threads;
    barrier.whole_block = whole_block;
  } else if (barrier.whole_block != whole_block || barrier.expected != threads) {
    fault(FaultKind::divergent, fmt::format("barrier {}: {} threads expected here, {} by those that came before\n    at {}", id,
                                            whole_block ? block.live_threads : threads, barrier.expected, where(barrier.pc)), pc);
  } else if (barrier.pc != pc && whole_block && !same_place(barrier.pc, pc)) {
    fault(FaultKind::divergent,
          fmt::format("divergent barrier: {} comes to {} at another place than others of its block\n    at {}", describe_thread(t), name,
                      where(barrier.pc)),
          pc);
  }
  if (!t.warp->collectives.empty()) {
    for (const Collective& c : t.warp->collectives) {
      if ((c.mask & (1u << t.lane)) != 0) {
        fault(FaultKind::divergent, fmt::format("lane {} comes to {}, but {} of its warp wait for it at {}\n    at {}", t.lane, name,
                                                lanes_text(c.arrived), c.name, where(c.pc)), pc);
      }
    }
  }
  const uint32_t bit = 1u << t.lane;
  if ((barrier.arrived[warp.index] & bit) != 0) {
    fault(FaultKind::divergent, fmt::format("{} arrives twice at barrier {} in one phase", describe_thread(t), id), pc);
  }
  barrier.arrived[warp.index] |= bit;
  barrier.known = barrier.known ? joined(barrier.known, t.known) : t.known;
  barrier.world = barrier.world ? joined(barrier.world, t.world) : t.world;
  barrier.warp_epoch[warp.index] = std::max(barrier.warp_epoch[warp.index], t.epoch);
  barrier.resolved |= t.resolved;
  barrier.count += predicate != 0;
  ++barrier.voters;
  if (barrier.arrived[warp.index] == warp.live) barrier.arrived_threads += 32;
  if (waits) {
    barrier.waiting[warp.index] |= bit;
    t.waiting = Waiting::barrier;
    t.waiting_for = name;
    t.waiting_barrier = id;
    t.waiting_pc = pc;
  } else {
    t.epoch = ++block.now;
  }
  if (barrier_is_complete(block, barrier)) {
    complete_barrier(block, barrier);
    return;  // goes on; the others are ready
  }
  if (waits) wait_for_turn(t);
}

}  // namespace

// Those that waited for a thread which exits may be complete without it.
void leave_barriers(Thread& t) {
  Warp& warp = *t.warp;
  Block& block = *t.block;
  for (Barrier& barrier : block.barriers) {
    if (barrier.pc == 0) continue;
    if (!barrier.whole_block && warp.live != 0 && barrier.arrived[warp.index] == warp.live) barrier.arrived_threads += 32;
    if (barrier_is_complete(block, barrier)) complete_barrier(block, barrier);
  }
}

int block_sync(BlockVote kind, int predicate) {
  Unobserved hidden;
  Thread& t = calling();
  arrive_at_barrier(t, 0, 0, true, kind, predicate, "__syncthreads", CALLER);
  return t.result;
}

void barrier_sync(int id, int threads) {
  Unobserved hidden;
  arrive_at_barrier(calling(), id, static_cast<uint32_t>(threads), true, BlockVote::none, 0, "bar.sync", CALLER);
}

void barrier_arrive(int id, int threads) {
  Unobserved hidden;
  arrive_at_barrier(calling(), id, static_cast<uint32_t>(threads), false, BlockVote::none, 0, "bar.arrive", CALLER);
}

}  // namespace fulmen::emulator
