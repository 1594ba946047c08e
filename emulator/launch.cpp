// The launch: blocks that start, threads that end, and what a thread asks of its launch.
#include <fmt/format.h>

#include <mutex>

#include "emulator/runtime.hpp"

namespace fulmen::emulator {

namespace {

// Memory for a block, used again by the blocks after it.
std::unique_ptr<Block> make_block() {
  auto block = std::make_unique<Block>();
  block->dynamic_bytes = grid->launch->shared_bytes;
  const size_t dynamic_end = (kArenaGuard + block->dynamic_bytes + 127) / 128 * 128;
  block->arena_bytes = dynamic_end + kArenaGuard + 48 * 1024 + kArenaGuard;
  block->arena_memory.reset(new char[block->arena_bytes + 128]);
  block->arena = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(block->arena_memory.get()) + 127) / 128 * 128);
  block->threads.resize(grid->threads_per_block);
  block->warps.resize((grid->threads_per_block + 31) / 32);
  for (Thread& t : block->threads) take_stack(t);
  return block;
}

void start_block(uint32_t number) {
  std::unique_ptr<Block> block;
  if (grid->idle.empty()) {
    block = make_block();
  } else {
    block = std::move(grid->idle.back());
    grid->idle.pop_back();
  }
  block->number = number;
  block->index = {number % grid->size.x, number / grid->size.x % grid->size.y, number / (grid->size.x * grid->size.y)};
  block->now = 1;
  block->live_threads = grid->threads_per_block;
  block->statics.clear();
  block->static_end = (kArenaGuard + block->dynamic_bytes + 127) / 128 * 128 + kArenaGuard;
  std::memset(block->arena, 0xff, block->arena_bytes);
  block->states.assign(block->arena_bytes, kUnwritten);
  block->cells.assign(block->arena_bytes / 4 + 1, Cell());
  for (Barrier& barrier : block->barriers) barrier.reset();
  const KnowledgeRef nothing(new Knowledge());
  for (uint32_t w = 0; w < block->warps.size(); ++w) {
    Warp& warp = block->warps[w];
    warp.block = block.get();
    warp.index = w;
    warp.ready = warp.live = 0;
    warp.queue_place = -1;
    warp.collectives.clear();
    warp.log.clear();
  }
  for (uint32_t i = 0; i < grid->threads_per_block; ++i) {
    Thread& t = block->threads[i];
    char* const stack = t.stack;
    t = Thread();
    t.stack = stack;
    t.block = block.get();
    t.warp = &block->warps[i / 32];
    t.index = i;
    t.index3 = {i % grid->block_size.x, i / grid->block_size.x % grid->block_size.y, i / (grid->block_size.x * grid->block_size.y)};
    t.lane = i % 32;
    t.who = number << 10 | i;
    t.known = nothing;
    t.warp->live |= 1u << t.lane;
    make_fiber(t);
  }
  for (Warp& warp : block->warps) enqueue(warp, warp.live);
  grid->resident.push_back(std::move(block));
}

void retire_blocks() {
  for (size_t i = 0; i < grid->resident.size();) {
    if (grid->resident[i]->live_threads == 0) {
      grid->idle.push_back(std::move(grid->resident[i]));
      grid->resident[i] = std::move(grid->resident.back());
      grid->resident.pop_back();
    } else {
      ++i;
    }
  }
}

// Clusters start as a whole. Hardware starts blocks in about the order of their numbers, but promises none: neighbours are swapped at random.
void choose_order() {
  const uint32_t starts = grid->blocks / grid->launch->cluster;
  grid->block_order.resize(starts);
  for (uint32_t i = 0; i < starts; ++i) grid->block_order[i] = i;
  for (uint32_t i = 0; i + 1 < starts; ++i) {
    const uint32_t j = i + static_cast<uint32_t>(next_random() % std::min<uint32_t>(8, starts - i));
    std::swap(grid->block_order[i], grid->block_order[j]);
  }
}

void fill_up() {
  const unsigned cluster = grid->launch->cluster;
  while (grid->next_block < grid->block_order.size() && grid->resident.size() + cluster <= std::max(cluster, grid->launch->resident_blocks)) {
    const uint32_t first = grid->block_order[grid->next_block++] * cluster;
    for (uint32_t i = 0; i < cluster; ++i) start_block(first + i);
  }
}

// Until all blocks have ended, or a fault.
void run_blocks() {
  choose_order();
  for (fill_up(); !grid->stopping && !grid->resident.empty(); fill_up()) {
    if (!run_threads()) {
      bool divergent = false;
      const std::string text = deadlock_text(divergent);
      add_fault(divergent ? FaultKind::divergent : FaultKind::deadlock, text);
      return;
    }
    retire_blocks();
  }
}

void check_limits(const Launch& launch) {
  const auto refuse = [](const std::string& why) { add_fault(FaultKind::limit, why); };
  const unsigned threads = grid->threads_per_block, blocks = grid->blocks;
  if (threads == 0 || threads > 1024) refuse(fmt::format("{} threads in a block (1 to 1024)", threads));
  if (launch.grid.y > 65535 || launch.grid.z > 65535 || blocks == 0 || blocks >= (1u << 22) - 1) refuse(fmt::format("a grid of {} x {} x {}", launch.grid.x, launch.grid.y, launch.grid.z));
  if (launch.cluster == 0 || launch.cluster > 16 || launch.grid.x % launch.cluster != 0) refuse(fmt::format("clusters of {} blocks in a grid of {}", launch.cluster, launch.grid.x));
  if (launch.shared_bytes > launch.shared_limit) refuse(fmt::format("{} bytes of shared memory, limit {}", launch.shared_bytes, launch.shared_limit));
}

std::function<void(const Launch&, const Report&)> watcher;
bool count_all = false;

}  // namespace

// Its kernel has returned.
void finish_thread(Thread& t) {
  check_exit(t);
  Warp& warp = *t.warp;
  Block& block = *t.block;
  t.waiting = Waiting::exited;
  warp.live &= ~(1u << t.lane);
  --block.live_threads;
  grid->idle_turns = 0;
  leave_collectives(t);
  leave_barriers(t);
  if (grid->launch->cluster > 1) complete_cluster(block.number / grid->launch->cluster);
  if (warp.live == 0 && !warp.log.empty()) flush_log(warp);
}

void watch_launches(std::function<void(const Launch&, const Report&)> watch, bool count) {
  watcher = std::move(watch);
  count_all = count;
}

Report run(const Launch& launch, void (*enter)(const void*), const void* call, size_t call_bytes) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  Grid state;
  grid = &state;
  state.launch = &launch;
  state.count = launch.count || count_all;
  state.enter = enter;
  state.call = call;
  state.call_bytes = call_bytes;
  state.random = launch.seed * 0x9e3779b97f4a7c15ull + 0x1234567;
  state.report.kernel = launch.name;
  state.report.seed = launch.seed;
  state.size = {launch.grid.x, launch.grid.y, launch.grid.z};
  state.block_size = {launch.block.x, launch.block.y, launch.block.z};
  state.threads_per_block = launch.block.x * launch.block.y * launch.block.z;
  state.blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  state.splits.reserve(1024);
  clear_shadow();
  check_limits(launch);
  if (state.report.clean()) run_blocks();
  running = current = nullptr;
  for (auto* list : {&state.resident, &state.idle}) {
    for (auto& block : *list) {
      for (Thread& t : block->threads) give_stack(t);
    }
  }
  Report report = std::move(state.report);
  for (auto& [instruction, counted] : state.access_counts) {
    counted.where = where(unpack_pc(static_cast<uint32_t>(instruction >> 1)));
    counted.shared = (instruction & 1) != 0;
    report.accesses.push_back(std::move(counted));
  }
  grid = nullptr;
  if (watcher) watcher(launch, report);
  return report;
}

// ---- asked by threads

Index3 thread_index() { return running->index3; }
Index3 block_index() { return running->block->index; }
Index3 block_size() { return grid->block_size; }
Index3 grid_size() { return grid->size; }

void* dynamic_shared_base() { return running->block->arena + kArenaGuard; }

void* static_shared_base(const void* key, size_t bytes, size_t alignment) {
  Unobserved hidden;
  Block& block = *running->block;
  auto [it, is_new] = block.statics.try_emplace(key, 0);
  if (is_new) {
    const size_t at = (block.static_end + alignment - 1) / alignment * alignment;
    if (at + bytes + kArenaGuard > block.arena_bytes) {
      block.statics.erase(it);
      fault(FaultKind::limit, "more than 48 KB of static shared memory", CALLER);
    }
    it->second = at;
    block.static_end = at + bytes;
  }
  return block.arena + it->second;
}

uint32_t shared_address(const void* pointer) {
  Unobserved hidden;
  Thread& t = calling();
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (!in_arena(*t.block, address)) {
    fault(FaultKind::out_of_bounds, fmt::format("the address of {} is taken as one of shared memory", describe_address(address)), CALLER);
  }
  return static_cast<uint32_t>(address - reinterpret_cast<uintptr_t>(t.block->arena));
}

void trap() {
  Unobserved hidden;
  fault(FaultKind::trap, "__trap()", CALLER);
}

void griddep_wait() {
  Unobserved hidden;
  calling().resolved = true;
}

void griddep_launch_dependents() {}

}  // namespace fulmen::emulator
