#include "engine/pool.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fulmen::engine {
namespace {

// About 30 microseconds: longer than the serial work between two regions of a decode step.
constexpr int kSpins = 1000;
// Past this many spins the thread waited for has probably lost its core: give it this one.
constexpr int kSpinsBeforeYield = 2000;

inline void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

thread_local bool inside_region = false;

}  // namespace

Pool::Pool(int num_threads) {
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { work(); });
}

Pool::~Pool() {
  stop_.store(true);
  state_.fetch_add(1u << 16);  // a new epoch that is not open
  state_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::take_items() {
  inside_region = true;
  for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < job_.count;) job_.body(job_.user, i);
  inside_region = false;
}

void Pool::run(int64_t count, fulmen_parallel_body body, void* user) {
  if (count > 1 && !workers_.empty() && !inside_region && busy_.try_lock()) {
    const std::lock_guard<std::mutex> lock(busy_, std::adopt_lock);
    job_ = {body, user, count};
    next_.store(0, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    const uint32_t epoch = (state_.load(std::memory_order_relaxed) >> 16) + 1;
    state_.store(epoch << 16 | kOpen, std::memory_order_release);
    state_.notify_all();
    take_items();
    const uint32_t joined = state_.fetch_and(~kOpen, std::memory_order_acq_rel) & (kOpen - 1);
    for (int spins = 0; finished_.load(std::memory_order_acquire) != joined; ++spins) {
      if (spins < kSpinsBeforeYield) pause_cpu();
      else std::this_thread::yield();
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) body(user, i);
}

void Pool::work() {
  uint32_t seen_epoch = 0;
  for (int spins = 0; !stop_.load(std::memory_order_relaxed);) {
    uint32_t state = state_.load(std::memory_order_acquire);
    if ((state >> 16) == seen_epoch || !(state & kOpen)) {
      if (++spins < kSpins) {
        pause_cpu();
      } else {
        state_.wait(state, std::memory_order_acquire);
        spins = 0;
      }
      continue;
    }
    spins = 0;
    if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
    seen_epoch = state >> 16;
    take_items();
    finished_.fetch_add(1, std::memory_order_release);
  }
}

}  // namespace fulmen::engine
