// Fibers, scheduling, warp collectives, barriers, and the launch itself.
#include "emulator/runtime.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <boost/context/detail/fcontext.hpp>
#include <bit>
#include <mutex>
#include <stdexcept>

namespace fulmen::emulator {

namespace context = boost::context::detail;

Grid* grid = nullptr;
Thread* current = nullptr;
Thread* running = nullptr;
uintptr_t current_stack = 0;

#define CALLER reinterpret_cast<uintptr_t>(__builtin_return_address(0))

// ---- stacks

namespace {

class StackPool {
 public:
  char* take() {
    if (free_.empty()) {
      // A page that faults below each stack.
      void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) throw std::bad_alloc();
      mprotect(p, 4096, PROT_NONE);
      return static_cast<char*>(p);
    }
    char* stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void give(char* stack) { free_.push_back(stack); }

 private:
  std::vector<char*> free_;
};
StackPool stacks;

// ---- scheduling

void enqueue(Warp& warp, uint32_t lanes) {
  warp.ready |= lanes;
  if (warp.queue_place < 0 && warp.ready != 0) {
    warp.queue_place = static_cast<int>(grid->queue.size());
    grid->queue.push_back(&warp);
  }
}

void dequeue(Warp& warp) {
  if (warp.queue_place < 0) return;
  Warp* last = grid->queue.back();
  grid->queue[warp.queue_place] = last;
  last->queue_place = warp.queue_place;
  grid->queue.pop_back();
  warp.queue_place = -1;
}

// Lanes of the current warp in random order while any is ready, then a random other warp.
Thread* pick() {
  Warp* warp = grid->current_warp;
  if (warp == nullptr || warp->ready == 0) {
    if (grid->queue.empty()) return nullptr;
    warp = grid->queue[next_random() % grid->queue.size()];
    grid->current_warp = warp;
  }
  const int turn = static_cast<int>(next_random() & 31);
  const uint32_t lane = (static_cast<uint32_t>(std::countr_zero(std::rotr(warp->ready, turn))) + turn) & 31;
  return &warp->block->threads[warp->index * 32 + lane];
}

void save_and_continue(context::transfer_t from) {
  // Whoever jumped here left its context to be kept.
  if (from.data != nullptr) {
    static_cast<Thread*>(from.data)->context = from.fctx;
  } else {
    grid->main_context = from.fctx;
  }
}

void resume(Thread* next, Thread* self) {
  running = next;
  if (next == nullptr) {
    current = nullptr;
    save_and_continue(context::jump_fcontext(static_cast<context::fcontext_t>(grid->main_context), self));
  } else {
    current = next;
    current_stack = reinterpret_cast<uintptr_t>(next->stack);
    save_and_continue(context::jump_fcontext(static_cast<context::fcontext_t>(next->context), self));
  }
  if (self != nullptr) {
    running = current = self;
    current_stack = reinterpret_cast<uintptr_t>(self->stack);
  }
}

}  // namespace

// The running thread stops until somebody makes its lane ready again.
void wait_for_turn(Thread& t) {
  Warp& warp = *t.warp;
  warp.ready &= ~(1u << t.lane);
  if (warp.ready == 0) dequeue(warp);
  resume(pick(), &t);
}

void wake(Thread& t) {
  t.waiting = Waiting::nothing;
  enqueue(*t.warp, 1u << t.lane);
}

namespace {

// ---- what barriers and warps know

KnowledgeRef fresh(const Knowledge& from) {
  KnowledgeRef copy(new Knowledge(from));
  copy->references = 1;
  return copy;
}

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
  KnowledgeRef after = fresh(*known.get());
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

// ---- warp collectives

bool same_place(uintptr_t a, uintptr_t b) { return a == b || line_of(a) == line_of(b); }

std::string lanes_text(uint32_t lanes) { return fmt::format("lanes {:#010x}", lanes); }

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

Thread& calling() {
  if (running == nullptr) throw std::logic_error("a device function was called outside of a launch");
  return *running;
}

}  // namespace

Index3 thread_index() {
  return running->index3;
}
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

// ---- turns

void give_turn(Thread& t) {
  if (++grid->idle_turns > 2'000'000 || ++grid->turns > 400'000'000) {
    fault(FaultKind::deadlock,
          "threads spin on memory that nobody changes any more (a wait for a block that doesn't run, or a signal that was "
          "never given)");
  }
  grid->current_warp = nullptr;
  Thread* next = pick();
  if (next == &t || next == nullptr) {
    grid->current_warp = t.warp;
    return;
  }
  resume(next, &t);
}

long long clock_now() {
  Unobserved hidden;
  give_turn(calling());
  static long long ticks = 0;
  return ticks += 1 + static_cast<long long>(next_random() % 64);
}

void sleep_hint() {
  Unobserved hidden;
  give_turn(calling());
}

void trap() {
  Unobserved hidden;
  fault(FaultKind::trap, "__trap()", CALLER);
}

// ---- block barriers

namespace {

void complete_barrier(Block& block, Barrier& barrier) {
  const BlockVote kind = barrier.kind;
  grid->idle_turns = 0;
  KnowledgeRef after = fresh(barrier.known ? *barrier.known.get() : Knowledge());
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

void griddep_wait() {
  Unobserved hidden;
  calling().resolved = true;
}

void griddep_launch_dependents() {}

// ---- threads and blocks

namespace {

void finish_thread(Thread& t) {
  check_exit(t);
  Warp& warp = *t.warp;
  Block& block = *t.block;
  const uint32_t bit = 1u << t.lane;
  t.waiting = Waiting::exited;
  warp.live &= ~bit;
  --block.live_threads;
  grid->idle_turns = 0;
  // Those that waited for this lane may be complete without it (CUDA: all non-exited lanes of the mask take part).
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
  for (Barrier& barrier : block.barriers) {
    if (barrier.pc == 0) continue;
    if (!barrier.whole_block && warp.live != 0 && barrier.arrived[warp.index] == warp.live) barrier.arrived_threads += 32;
    if (barrier_is_complete(block, barrier)) complete_barrier(block, barrier);
  }
  if (grid->launch->cluster > 1) complete_cluster(block.number / grid->launch->cluster);
  if (warp.live == 0 && !warp.log.empty()) flush_log(warp);
}

void thread_main(context::transfer_t from) {
  save_and_continue(from);
  Thread* t = running;
  grid->enter(grid->call);
  {
    Unobserved hidden;
    finish_thread(*t);
    Warp& warp = *t->warp;
    warp.ready &= ~(1u << t->lane);
    if (warp.ready == 0) dequeue(warp);
  }
  // A block that ended makes room for another: the main context sees to it.
  resume(t->block->live_threads == 0 ? nullptr : pick(), t);
  __builtin_unreachable();
}

void start_block(uint32_t number) {
  std::unique_ptr<Block> block;
  if (!grid->idle.empty()) {
    block = std::move(grid->idle.back());
    grid->idle.pop_back();
  } else {
    block = std::make_unique<Block>();
    block->dynamic_bytes = grid->launch->shared_bytes;
    const size_t dynamic_end = (kArenaGuard + block->dynamic_bytes + 127) / 128 * 128;
    block->arena_bytes = dynamic_end + kArenaGuard + 48 * 1024 + kArenaGuard;
    block->arena_memory.reset(new char[block->arena_bytes + 128]);
    block->arena = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(block->arena_memory.get()) + 127) / 128 * 128);
    block->threads.resize(grid->threads_per_block);
    block->warps.resize((grid->threads_per_block + 31) / 32);
    for (Thread& t : block->threads) t.stack = stacks.take();
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
    char* stack = t.stack;
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
    t.context = context::make_fcontext(stack + kStackBytes, kStackBytes - 4096, thread_main);
  }
  for (Warp& warp : block->warps) enqueue(warp, warp.live);
  grid->resident.push_back(std::move(block));
}

std::string deadlock_text(bool& divergent) {
  std::string text = "no thread can run\n";
  divergent = false;
  int lines = 0;
  for (const auto& block : grid->resident) {
    for (int id = 0; id < 16; ++id) {
      const Barrier& barrier = block->barriers[id];
      if (barrier.pc == 0) continue;
      uint32_t arrived = 0;
      for (const Warp& warp : block->warps) arrived += static_cast<uint32_t>(std::popcount(barrier.arrived[warp.index]));
      text += fmt::format("    block {}: barrier {}: {} of {} threads have arrived\n", block->number, id, arrived,
                          barrier.whole_block ? block->live_threads : barrier.expected);
    }
    for (const Warp& warp : block->warps) {
      // Lanes grouped by what they wait for.
      std::map<std::pair<std::string, uintptr_t>, uint32_t> groups;
      for (uint32_t lane = 0; lane < 32; ++lane) {
        if ((warp.live >> lane & 1u) == 0) continue;
        const Thread& t = block->threads[warp.index * 32 + lane];
        std::string what = t.waiting_for;
        if (t.waiting == Waiting::barrier) what += fmt::format(" (barrier {})", t.waiting_barrier);
        groups[{what, t.waiting_pc}] |= 1u << lane;
      }
      if (groups.size() > 1) divergent = true;
      for (const auto& [what, lanes] : groups) {
        if (++lines > 40) continue;
        text += fmt::format("    block {} warp {} {} wait at {}\n        at {}\n", block->number, warp.index, lanes_text(lanes), what.first, where(what.second));
      }
    }
  }
  if (text.back() == '\n') text.pop_back();
  return text;
}

}  // namespace

namespace {
std::function<void(const Launch&, const Report&)> watcher;
bool count_all = false;
}  // namespace

void watch_launches(std::function<void(const Launch&, const Report&)> watch, bool count) {
  watcher = std::move(watch);
  count_all = count;
}

// The report is written; nothing of the kernel runs any more.
void stop_launch() {
  grid->stopping = true;
  if (running != nullptr) {
    resume(nullptr, running);
    __builtin_unreachable();
  }
  throw std::logic_error("a fault outside of a launch");
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
  auto refuse = [&](std::string why) {
    state.report.faults.push_back({FaultKind::limit, fmt::format("limit: {}\n  kernel {}, seed {}", why, launch.name, launch.seed)});
  };
  if (state.threads_per_block == 0 || state.threads_per_block > 1024) refuse(fmt::format("{} threads in a block (1 to 1024)", state.threads_per_block));
  if (launch.grid.y > 65535 || launch.grid.z > 65535 || state.blocks == 0 || state.blocks >= (1u << 22) - 1) refuse(fmt::format("a grid of {} x {} x {}", launch.grid.x, launch.grid.y, launch.grid.z));
  if (launch.cluster == 0 || launch.cluster > 16 || launch.grid.x % launch.cluster != 0) refuse(fmt::format("clusters of {} blocks in a grid of {}", launch.cluster, launch.grid.x));
  if (launch.shared_bytes > launch.shared_limit) refuse(fmt::format("{} bytes of shared memory, limit {}", launch.shared_bytes, launch.shared_limit));

  if (state.report.faults.empty()) {
    const uint32_t starts = state.blocks / launch.cluster;  // clusters start as a whole
    state.block_order.resize(starts);
    for (uint32_t i = 0; i < starts; ++i) state.block_order[i] = i;
    // Hardware starts blocks in about this order, but promises none: swap neighbours at random.
    for (uint32_t i = 0; i + 1 < starts; ++i) {
      const uint32_t j = i + static_cast<uint32_t>(next_random() % std::min<uint32_t>(8, starts - i));
      std::swap(state.block_order[i], state.block_order[j]);
    }
    while (!state.stopping) {
      for (size_t i = 0; i < state.resident.size();) {
        if (state.resident[i]->live_threads == 0) {
          state.idle.push_back(std::move(state.resident[i]));
          state.resident[i] = std::move(state.resident.back());
          state.resident.pop_back();
        } else {
          ++i;
        }
      }
      while (state.next_block < starts && state.resident.size() + launch.cluster <= std::max(launch.cluster, launch.resident_blocks)) {
        const uint32_t first = state.block_order[state.next_block++] * launch.cluster;
        for (uint32_t i = 0; i < launch.cluster; ++i) start_block(first + i);
      }
      if (state.resident.empty()) break;
      state.current_warp = nullptr;
      Thread* next = pick();
      if (next == nullptr) {
        bool divergent = false;
        const std::string text = deadlock_text(divergent);
        const FaultKind kind = divergent ? FaultKind::divergent : FaultKind::deadlock;
        state.report.faults.push_back({kind, fmt::format("{}: {}\n  kernel {}, seed {}", fault_name(kind), text, launch.name, launch.seed)});
        break;
      }
      resume(next, nullptr);
    }
  }
  running = current = nullptr;
  for (auto* list : {&state.resident, &state.idle}) {
    for (auto& block : *list) {
      for (Thread& t : block->threads) stacks.give(t.stack);
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

}  // namespace fulmen::emulator
