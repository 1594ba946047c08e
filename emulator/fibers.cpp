// A fiber per thread of the kernel, and whose turn it is.
#include <sys/mman.h>

#include <bit>
#include <boost/context/detail/fcontext.hpp>
#include <stdexcept>

#include "emulator/runtime.hpp"

namespace fulmen::emulator {

namespace context = boost::context::detail;

Grid* grid = nullptr;
Thread* current = nullptr;
Thread* running = nullptr;
uintptr_t current_stack = 0;

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

}  // namespace

void take_stack(Thread& t) { t.stack = stacks.take(); }
void give_stack(Thread& t) { stacks.give(t.stack); }

// ---- turns

void enqueue(Warp& warp, uint32_t lanes) {
  warp.ready |= lanes;
  if (warp.queue_place < 0 && warp.ready != 0) {
    warp.queue_place = static_cast<int>(grid->queue.size());
    grid->queue.push_back(&warp);
  }
}

namespace {

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

// Whose turn it is next; returns when it is self's again, observed or not as it was.
void resume(Thread* next, Thread* self) {
  Thread* const observed = current;
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
    running = self;
    current = observed;
    current_stack = reinterpret_cast<uintptr_t>(self->stack);
  }
}

// What a fiber does first.
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

}  // namespace

void make_fiber(Thread& t) { t.context = context::make_fcontext(t.stack + kStackBytes, kStackBytes - 4096, thread_main); }

bool run_threads() {
  grid->current_warp = nullptr;
  Thread* next = pick();
  if (next == nullptr) return false;
  resume(next, nullptr);
  return true;
}

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

// The report is written; nothing of the kernel runs any more.
void stop_launch() {
  grid->stopping = true;
  if (running != nullptr) {
    resume(nullptr, running);
    __builtin_unreachable();
  }
  throw std::logic_error("a fault outside of a launch");
}

Thread& calling() {
  if (running == nullptr) throw std::logic_error("a device function was called outside of a launch");
  return *running;
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

}  // namespace fulmen::emulator
