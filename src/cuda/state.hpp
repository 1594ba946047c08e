// What a context keeps for its CUDA device: the kernels it has made and loaded, and how they are launched.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "core/context.hpp"
#include "cuda/driver.hpp"
#include "cuda/pinned_ring.hpp"
#include "jit/kernels.hpp"
#include "plan/targets.hpp"

namespace fulmen::cuda {

// A cubin loaded once for all CUDA contexts (cuLibrary*), or once per context where the driver is older than 12.0.
class LoadedKernel {
 public:
  LoadedKernel(const CompiledKernel& compiled, int num_threads, int smem_bytes);
  ~LoadedKernel();
  LoadedKernel(const LoadedKernel&) = delete;
  LoadedKernel& operator=(const LoadedKernel&) = delete;

  // Does for the current CUDA context what the driver would do lazily at the first launch.
  void load(const DeviceInfo& device);
  // `params` is copied during the call. `dependent`: may start before the kernel ahead of it has ended; the kernel
  // itself waits (griddepcontrol). Nothing is allocated if load() was called for this context.
  void launch(const DeviceInfo& device, Stream stream, unsigned grid, const void* params, bool dependent) const;

  const CompiledKernel& compiled() const { return compiled_; }
  int num_threads() const { return num_threads_; }

 private:
  Function function() const;

  const CompiledKernel& compiled_;
  int num_threads_, smem_bytes_;
  Library library_ = nullptr;
  KernelHandle kernel_ = nullptr;
  mutable std::shared_mutex mutex_;  // of modules_: only with older drivers
  struct InContext {
    Module module;
    Function function;
  };
  std::map<Ctx, InContext> modules_;
};

class State : public DeviceState {
 public:
  State(int device_index, const ContextPaths& paths);
  int num_workers() const override { return device_.num_sms; }
  void prepare(const fulmen_op_spec* specs, int32_t num_specs, fulmen_progress_fn progress, void* user) override;
  void seal() override { library_.seal(); }
  Stats stats() const override;

  const DeviceInfo& device() const { return device_; }
  const Target& target() const { return target_; }
  KernelLibrary& library() { return library_; }
  PinnedRing& ring() { return ring_; }
  bool has_dependent_launch() const { return dependent_launch_; }

  // The kernel known by a short name; made and loaded at first use, which needs a stream that isn't capturing: then,
  // and after seal, it is refused by name. The CUDA context that will launch it must be current.
  const LoadedKernel& kernel(const std::string& name, Stream stream, const std::function<Unit()>& make);
  // The same at creation, outside any stream.
  const LoadedKernel& prepare(const Unit& unit);

  // A launch after everything before it on the stream.
  void launch(const LoadedKernel& kernel, Stream stream, int64_t grid, const void* params) const;

 private:
  const LoadedKernel& loaded(const Unit& unit, bool may_compile);

  const DeviceInfo& device_;
  Target target_;
  KernelLibrary library_;
  PinnedRing ring_;
  bool dependent_launch_;
  mutable std::atomic<int64_t> launches_{0};
  std::shared_mutex mutex_;  // of the two below
  std::map<std::string, const LoadedKernel*> by_name_;
  std::map<std::string, std::unique_ptr<LoadedKernel>> by_key_;
};

// The state of a CUDA context.
State& state_of(fulmen_context& context);
std::unique_ptr<DeviceState> make_state(int device_index, const ContextPaths& paths);

}  // namespace fulmen::cuda
