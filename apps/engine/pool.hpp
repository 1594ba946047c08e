// The engine's threads: one pool for its matrix products and, through Fulmen's parallel_for callback, for Fulmen's
// ops. A decode step is hundreds of parallel regions of a few microseconds each, so idle workers spin for a moment
// before they sleep.
#pragma once

#include <fulmen/fulmen.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace fulmen::engine {

class Pool {
 public:
  explicit Pool(int num_threads);  // the calling thread counts as one
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// body(i) for every i in [0, count), on any threads; returns when all are done. A call from inside a body, or
  /// while another thread's region runs, is done by the caller alone: threads are never more than asked for.
  template <class Body>
  void parallel_for(int64_t count, const Body& body) {
    run(count, [](void* user, int64_t i) { (*static_cast<const Body*>(user))(i); }, const_cast<Body*>(&body));
  }

  void run(int64_t count, fulmen_parallel_body body, void* user);

  /// For fulmen_context_options: parallel_for = &Pool::fulmen_callback, parallel_user = the pool.
  static void fulmen_callback(void* pool, int64_t count, fulmen_parallel_body body, void* user) {
    static_cast<Pool*>(pool)->run(count, body, user);
  }

 private:
  void work();
  void take_items();

  struct Job {
    fulmen_parallel_body body = nullptr;
    void* user = nullptr;
    int64_t count = 0;
  };

  // state_ = epoch << 16 | open << 15 | workers that joined. A worker that is not scheduled in time simply does not
  // join; the caller closes the job when the items are gone and waits only for those inside.
  static constexpr uint32_t kOpen = 1u << 15;
  std::atomic<uint32_t> state_{0};
  std::atomic<uint32_t> finished_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  Job job_;
  std::atomic<bool> stop_{false};
  std::mutex busy_;
  std::vector<std::thread> workers_;
};

}  // namespace fulmen::engine
