// Clusters: blocks that start together, their barrier, and their view of each other's shared memory.
#include <fmt/format.h>

#include "emulator/runtime.hpp"

namespace fulmen::emulator {

uint32_t cluster_rank() { return running->block->number % grid->launch->cluster; }

void* cluster_peer(const void* shared, uint32_t rank) {
  Unobserved hidden;
  const Block& own = *running->block;
  const auto address = reinterpret_cast<uintptr_t>(shared);
  if (!in_arena(own, address) || rank >= grid->launch->cluster) {
    fault(FaultKind::out_of_bounds, fmt::format("{} is mapped to block {} of a cluster of {}", describe_address(address), rank, grid->launch->cluster), CALLER);
  }
  const uint32_t wanted = own.number / grid->launch->cluster * grid->launch->cluster + rank;
  for (const auto& block : grid->resident) {
    if (block->number == wanted && block->live_threads != 0) return block->arena + (address - reinterpret_cast<uintptr_t>(own.arena));
  }
  fault(FaultKind::out_of_bounds, fmt::format("{} of block {}, which has ended, by {}", describe_address(address), wanted, describe_thread(*running)), CALLER);
}

void complete_cluster(uint32_t cluster) {
  const auto found = grid->cluster_barriers.find(cluster);
  if (found == grid->cluster_barriers.end()) return;
  ClusterBarrier& barrier = found->second;
  std::vector<Block*> blocks;
  uint32_t live = 0;
  for (const auto& block : grid->resident) {
    if (block->number / grid->launch->cluster != cluster) continue;
    blocks.push_back(block.get());
    live += block->live_threads;
  }
  if (barrier.arrived == 0 || barrier.arrived != live) return;
  grid->idle_turns = 0;
  WorldRef world(barrier.world ? new World(*barrier.world.get()) : new World());
  std::vector<KnowledgeRef> known;
  for (Block* block : blocks) {
    KnowledgeRef all(new Knowledge());
    all->floor = block->now++;
    world->learn(block->number, all);
    known.push_back(all);
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    for (Warp& warp : blocks[i]->warps) {
      if (!warp.log.empty()) flush_log(warp);
    }
    for (Thread& t : blocks[i]->threads) {
      if (t.waiting != Waiting::cluster) continue;
      t.known = known[i];
      t.world = world;
      t.epoch = blocks[i]->now;
      t.resolved = t.resolved || barrier.resolved;
      wake(t);
    }
  }
  grid->cluster_barriers.erase(found);
}

void cluster_sync() {
  Unobserved hidden;
  Thread& t = *running;
  ++grid->report.counters.barrier_waits;
  const uint32_t cluster = t.block->number / grid->launch->cluster;
  ClusterBarrier& barrier = grid->cluster_barriers[cluster];
  barrier.world = barrier.world ? joined(barrier.world, t.world) : t.world;
  barrier.resolved |= t.resolved;
  ++barrier.arrived;
  t.waiting = Waiting::cluster;
  t.waiting_for = "barrier.cluster";
  t.waiting_pc = CALLER;
  complete_cluster(cluster);
  if (t.waiting == Waiting::cluster) wait_for_turn(t);
}

}  // namespace fulmen::emulator
