// What a test sees of the fake driver: FULMEN_CUDA_DRIVER names the library, dlsym of "fulmen_fake_driver" gives this.
#pragma once

#include <cstdint>

struct FakeDriver {
  // Set by the test.
  bool capturing = false;
  bool events_pend = false;          // recorded events have not passed
  int launch_result = 0;             // CUresult of the next launches
  void (*on_launch)(const void* params, void* user) = nullptr;
  void (*on_copy_up)(void* to, const void* from, uint64_t bytes, void* user) = nullptr;
  void* user = nullptr;
  // Counted.
  int launches = 0, waits = 0, host_allocations = 0, host_frees = 0, device_allocations = 0, loads = 0, unsafe_calls = 0;
  bool relaxed = false;              // the thread's capture mode
};
