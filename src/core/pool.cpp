#include "core/pool.hpp"

#include <unistd.h>

#include <atomic>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "core/cpus.hpp"
#include "core/log.hpp"

namespace fulmen {
namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A decode step has hundreds of short parallel loops: a thread that sleeps between them costs a wake-up each time,
// one that spins for long starves others. This many pauses are 20 to 50 microseconds.
constexpr int kSpins = 1500;

thread_local bool inside_body = false;

// One job at a time. A claim is one compare-and-swap on `ticket` = generation << 32 | next index, so a thread that
// wakes late claims nothing and nobody waits for it; a thread that has claimed an item keeps the job alive, since the
// caller returns only when `done` has counted every item.
class Workers {
 public:
  explicit Workers(int helpers) : pid_(getpid()), wanted_(helpers) {
    threads_.reserve(static_cast<size_t>(helpers));
    try {
      for (int id = 0; id < helpers; ++id) threads_.emplace_back([this, id] { work(id); });
    } catch (const std::system_error& error) {  // no more threads to be had: the caller and those that there are do it
      log(FULMEN_LOG_WARNING, "threads: expected {} more, found {}: {}", helpers, threads_.size(), error.what());
    }
    for (auto& thread : threads_) thread.detach();  // the pool lives as long as the process
  }

  pid_t pid() const { return pid_; }
  int wanted() const { return wanted_; }

  void run(int helpers, int64_t count, fulmen_parallel_body body, void* user) {
    std::lock_guard<std::mutex> one_job(mutex_);  // concurrent callers sleep here instead of oversubscribing
    constexpr int64_t kBatch = int64_t{1} << 30;
    for (int64_t base = 0; base < count; base += kBatch) {
      run_batch(helpers, base, count - base < kBatch ? count - base : kBatch, body, user);
    }
  }

 private:
  void run_batch(int helpers, int64_t base, int64_t count, fulmen_parallel_body body, void* user) {
    const uint64_t generation = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    // Close the ticket first: whoever still holds the old one must fail to claim before a new count can tempt it.
    ticket_.store(generation << 32 | kClosed, std::memory_order_release);
    body_ = body;
    user_ = user;
    base_ = base;
    helpers_.store(helpers, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    count_.store(static_cast<uint32_t>(count), std::memory_order_release);
    ticket_.store(generation << 32, std::memory_order_release);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    take_part();
    const int target = static_cast<int>(count);
    for (int spins = 0; done_.load(std::memory_order_acquire) != target; ++spins) {
      if (spins < kSpins) {
        relax();
      } else {
        const int seen = done_.load(std::memory_order_acquire);
        if (seen != target) done_.wait(seen, std::memory_order_acquire);
      }
    }
  }

  void take_part() {
    inside_body = true;
    while (true) {
      uint64_t ticket = ticket_.load(std::memory_order_acquire);
      const uint32_t index = static_cast<uint32_t>(ticket);
      if (index >= count_.load(std::memory_order_acquire)) break;
      // Success means that the generation, and so the count just read, was still current.
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
      const int count = static_cast<int>(count_.load(std::memory_order_relaxed));
      body_(user_, base_ + index);
      if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) done_.notify_all();
    }
    inside_body = false;
  }

  void work(int id) {
    int seen = 0;
    while (true) {
      for (int spins = 0; spins < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spins) relax();
      epoch_.wait(seen, std::memory_order_acquire);
      seen = epoch_.load(std::memory_order_acquire);
      if (id < helpers_.load(std::memory_order_relaxed)) take_part();
    }
  }

  static constexpr uint64_t kClosed = 0xffffffff;  // an index no count reaches

  const pid_t pid_;
  const int wanted_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  fulmen_parallel_body body_ = nullptr;
  void* user_ = nullptr;
  int64_t base_ = 0;
  std::atomic<int> helpers_{0};
  std::atomic<uint32_t> count_{0};
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<int> epoch_{0};
};

// Never destroyed: threads may still run at exit, and a forked child leaks its parent's (whose threads it lacks).
std::atomic<Workers*> current{nullptr};
std::atomic_flag growing = ATOMIC_FLAG_INIT;
std::atomic<pid_t> growing_pid{0};

Workers& workers(int helpers) {
  const pid_t pid = getpid();
  Workers* now = current.load(std::memory_order_acquire);
  if (now != nullptr && now->pid() == pid && now->wanted() >= helpers) return *now;
  if (growing_pid.exchange(pid) != pid) growing.clear();  // a lock held by a thread that fork left behind
  while (growing.test_and_set(std::memory_order_acquire)) std::this_thread::yield();
  now = current.load(std::memory_order_acquire);
  if (now == nullptr || now->pid() != pid || now->wanted() < helpers) {
    now = new Workers(helpers);
    current.store(now, std::memory_order_release);
  }
  growing.clear(std::memory_order_release);
  return *now;
}

}  // namespace

Pool::Pool(int num_threads) : num_threads_(num_threads > 0 ? num_threads : usable_cpus()) {}

Pool::Pool(fulmen_parallel_for parallel_for, void* user, int num_threads)
    : num_threads_(num_threads > 0 ? num_threads : usable_cpus()), callback_(parallel_for), callback_user_(user) {}

void Pool::run(int64_t count, fulmen_parallel_body body, void* user_body) const {
  if (count <= 0) return;
  if (count == 1 || num_threads_ == 1 || inside_body) {
    for (int64_t i = 0; i < count; ++i) body(user_body, i);
  } else if (callback_ != nullptr) {
    callback_(callback_user_, count, body, user_body);
  } else {
    workers(num_threads_ - 1).run(num_threads_ - 1, count, body, user_body);
  }
}

}  // namespace fulmen
