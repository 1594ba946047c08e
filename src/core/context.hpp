// A context: one device, its threads or its driver state, and what every op asks it for.
#pragma once

#include <memory>
#include <string>

#include "core/error.hpp"
#include "core/pool.hpp"
#include "fulmen/fulmen.h"

namespace fulmen {

// What a device other than the CPU keeps per context; src/cuda derives from it.
class DeviceState {
 public:
  virtual ~DeviceState() = default;
  virtual int num_workers() const = 0;
  // Compiles and loads what the specs need.
  virtual void prepare(const fulmen_op_spec* specs, int32_t num_specs, fulmen_progress_fn progress, void* user) = 0;
  virtual void seal() = 0;

  struct Stats {  // since the context was made; bytes_from_device: since the library was loaded
    int64_t compiles = 0, disk_hits = 0, memory_hits = 0, launches = 0, bytes_from_device = 0;
    bool sealed = false;
  };
  virtual Stats stats() const = 0;
};

struct ContextPaths {  // empty: searched or defaulted
  std::string cache_dir, nvrtc, kernels_dir;
};

}  // namespace fulmen

struct fulmen_context {
  fulmen_device_type device_type = FULMEN_CPU;
  int device_index = 0;
  fulmen::Pool pool{1};
  fulmen::ContextPaths paths;
  std::unique_ptr<fulmen::DeviceState> device;  // null on the CPU

  bool is_cpu() const { return device_type == FULMEN_CPU; }
};

namespace fulmen {

inline fulmen_context& deref(const char* op, fulmen_context* context) {
  require(context != nullptr, "{}: context: expected a context, found NULL", op);
  return *context;
}

}  // namespace fulmen
