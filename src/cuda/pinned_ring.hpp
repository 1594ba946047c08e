// Page-locked host memory through which small host arrays reach a kernel: the caller may overwrite its own memory as soon
// as the call returns, and nothing waits for the device.
//
// The kernel reads a slot where it lies. A slot is used again once the event behind its last reader has passed; while
// the oldest one is still being read the ring grows, up to kMostSlots, and only beyond that does acquire() wait.
#pragma once

#include <deque>
#include <memory>
#include <mutex>

#include "cuda/driver.hpp"

namespace fulmen::cuda {

class PinnedRing {
 public:
  PinnedRing() = default;
  ~PinnedRing();
  PinnedRing(const PinnedRing&) = delete;
  PinnedRing& operator=(const PinnedRing&) = delete;

  struct Slot {
    ~Slot();
    char* data = nullptr;
    size_t bytes = 0;
    Ctx context = nullptr;  // of the event
    Event event = nullptr;
    bool in_flight = false;
  };

  // Slots of at least so many bytes for the current CUDA context, made before anything is in a hurry.
  void reserve(Ctx context, size_t bytes);
  // `context` must be current; the slot is the caller's until it is given back.
  std::unique_ptr<Slot> acquire(Ctx context, size_t bytes);
  // After the launch that reads the slot.
  void release(std::unique_ptr<Slot> slot, Stream stream);
  // Where there was no launch.
  void release_unread(std::unique_ptr<Slot> slot);

 private:
  std::mutex mutex_;
  std::deque<std::unique_ptr<Slot>> slots_;  // not acquired, longest released first
  int64_t num_slots_ = 0;
};

}  // namespace fulmen::cuda
