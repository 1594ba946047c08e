// CPU threads: one pool for the process, made at first use and remade after fork, or the engine's own threads.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "fulmen/fulmen.h"

namespace fulmen {

// What a context hands to its ops: a view of the process's pool with a limit, or the engine's callback.
class Pool {
 public:
  // num_threads 0: usable_cpus().
  explicit Pool(int num_threads = 0);
  Pool(fulmen_parallel_for parallel_for, void* user, int num_threads);

  // Threads that take part in a parallel_for, the caller included.
  int num_threads() const { return num_threads_; }

  // Calls body(i) for every i in [0, count), each once, in any order on any threads; returns when all are done.
  // body must not throw. A call from inside a body runs on the calling thread alone.
  template <class Body>
  void parallel_for(int64_t count, Body&& body) const {
    using Plain = std::remove_reference_t<Body>;
    run(count, [](void* user, int64_t i) { (*static_cast<Plain*>(user))(i); }, const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  void run(int64_t count, fulmen_parallel_body body, void* user_body) const;

  int num_threads_;
  fulmen_parallel_for callback_ = nullptr;
  void* callback_user_ = nullptr;
};

}  // namespace fulmen
