#include "cuda/state.hpp"

#include <algorithm>

#include "prepare.hpp"

namespace fulmen::cuda {
namespace {

constexpr int kMinLibraryVersion = 12000;    // cuLibrary*
constexpr int kMinDependentVersion = 12030;  // programmatic edges in captured graphs

Target target_of(const DeviceInfo& device) {
  Target target;
  target.arch = arch_of(device.major, device.minor);
  target.name = target.arch;
  for (const Target& named : named_targets()) {
    if (named.arch == target.arch) target = named;
  }
  target.major = device.major;
  target.minor = device.minor;
  target.num_sms = device.num_sms;
  target.smem_per_block = device.max_shared_per_block;
  target.smem_per_sm = device.max_shared_per_sm;
  target.l2_bytes = device.l2_bytes;
  return target;
}

KernelOptions kernel_options(const ContextPaths& paths) {
  KernelOptions options;
  options.cache_dir = paths.cache_dir;
  options.nvrtc = paths.nvrtc;
  options.kernels_dir = paths.kernels_dir;
  options.driver_version = driver().version;
  return options;
}

}  // namespace

LoadedKernel::LoadedKernel(const CompiledKernel& compiled, int num_threads, int smem_bytes)
    : compiled_(compiled), num_threads_(num_threads), smem_bytes_(smem_bytes) {}

LoadedKernel::~LoadedKernel() {
  const Driver* api = try_driver(nullptr);
  if (api == nullptr) return;
  if (library_ != nullptr) api->LibraryUnload(library_);
  for (const auto& [context, loaded] : modules_) {
    if (api->CtxPush(context) != 0) continue;
    api->ModuleUnload(loaded.module);
    Ctx popped = nullptr;
    api->CtxPop(&popped);
  }
}

void LoadedKernel::load(const DeviceInfo& device) {
  const Driver& api = driver();
  std::unique_lock<std::shared_mutex> lock(mutex_);
  Function function = nullptr;
  if (api.version >= kMinLibraryVersion && api.LibraryLoadData != nullptr) {
    if (library_ == nullptr) {
      check(api.LibraryLoadData(&library_, compiled_.cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
            "cuLibraryLoadData");
      check(api.LibraryGetKernel(&kernel_, library_, kEntryName), "cuLibraryGetKernel");
    }
    if (smem_bytes_ > 48 * 1024) {
      check(api.KernelSetAttribute(kFunctionMaxDynamicShared, smem_bytes_, kernel_, device.id), "cuKernelSetAttribute");
    }
    check(api.KernelGetFunction(&function, kernel_), "cuKernelGetFunction");
  } else {
    Ctx context = nullptr;
    check(api.CtxGetCurrent(&context), "cuCtxGetCurrent");
    InContext& loaded = modules_[context];
    if (loaded.module == nullptr) {
      check(api.ModuleLoadData(&loaded.module, compiled_.cubin.data()), "cuModuleLoadData");
      check(api.ModuleGetFunction(&loaded.function, loaded.module, kEntryName), "cuModuleGetFunction");
    }
    function = loaded.function;
    if (smem_bytes_ > 48 * 1024) {
      check(api.FuncSetAttribute(function, kFunctionMaxDynamicShared, smem_bytes_), "cuFuncSetAttribute");
    }
  }
  if (api.FuncLoad != nullptr) check(api.FuncLoad(function), "cuFuncLoad");
}

Function LoadedKernel::function() const {
  if (kernel_ != nullptr) return reinterpret_cast<Function>(kernel_);  // launches take either
  Ctx context = nullptr;
  check(driver().CtxGetCurrent(&context), "cuCtxGetCurrent");
  std::shared_lock<std::shared_mutex> lock(mutex_);
  const auto found = modules_.find(context);
  if (found == modules_.end()) {
    fail(FULMEN_NOT_PREPARED, "kernel {} is not loaded in this CUDA context", compiled_.kernel);
  }
  return found->second.function;
}

void LoadedKernel::launch(const DeviceInfo&, Stream stream, unsigned grid, const void* params, bool dependent) const {
  const Driver& api = driver();
  void* arguments[] = {const_cast<void*>(params)};
  const auto threads = static_cast<unsigned>(num_threads_);
  const auto smem = static_cast<unsigned>(smem_bytes_);
  Result result = 0;
  if (dependent && api.LaunchKernelEx != nullptr) {
    LaunchAttribute attribute{};
    attribute.id = kAttributeProgrammaticStreamSerialization;
    attribute.value.programmatic_stream_serialization = 1;
    const LaunchConfig config{grid, 1, 1, threads, 1, 1, smem, stream, &attribute, 1};
    result = api.LaunchKernelEx(&config, function(), arguments, nullptr);
  } else {
    result = api.LaunchKernel(function(), grid, 1, 1, threads, 1, 1, smem, stream, arguments, nullptr);
  }
  if (result != 0) {
    try {
      fail_result(result, "cuLaunchKernel");
    } catch (const Error& error) {
      throw Error(error.status(), compiled_.kernel + ": " + error.text());
    }
  }
}

State::State(int device_index, const ContextPaths& paths)
    : device_(device_info(device_index)),
      target_(target_of(device_)),
      library_(kernel_options(paths)),
      dependent_launch_(device_.major >= 9 && driver().version >= kMinDependentVersion &&
                        driver().LaunchKernelEx != nullptr) {
  if (device_.major < 8) {
    fail(FULMEN_UNSUPPORTED, "device {} ({}) has compute capability {}.{}; expected 8.0 (Ampere) or newer", device_index,
         device_.name, device_.major, device_.minor);
  }
}

const LoadedKernel& State::loaded(const Unit& unit, bool may_compile) {
  const CompiledKernel& compiled = library_.get(unit, target_, may_compile);
  std::unique_lock<std::shared_mutex> lock(mutex_);
  auto& slot = by_key_[compiled.name];
  if (slot == nullptr) slot = std::make_unique<LoadedKernel>(compiled, unit.num_threads, unit.smem_bytes);
  slot->load(device_);
  return *slot;
}

const LoadedKernel& State::prepare(const Unit& unit) {
  const StreamScope scope(device_.index, nullptr);
  return loaded(unit, true);
}

void State::prepare(const fulmen_op_spec* specs, int32_t num_specs, fulmen_progress_fn progress, void* user) {
  std::vector<Unit> units;
  for (ShippedKernel& kernel : kernels_of_specs("prepare", target_, specs, num_specs)) units.push_back(std::move(kernel.unit));
  library_.prepare(units, target_, 0, [&](int done, int total, const CompiledKernel& kernel) {
    if (progress) progress(user, done, total, kernel.kernel.c_str(), kernel.seconds);
  });
  const StreamScope scope(device_.index, nullptr);
  for (const Unit& unit : units) loaded(unit, false);
}

State::Stats State::stats() const {
  const KernelCounters made = library_.counters();
  return {.compiles = made.compiles,
          .disk_hits = made.disk_hits,
          .memory_hits = made.memory_hits,
          .launches = launches_,
          .bytes_from_device = bytes_from_device(),
          .sealed = library_.sealed()};
}

const LoadedKernel& State::kernel(const std::string& name, Stream stream, const std::function<Unit()>& make) {
  {
    std::shared_lock<std::shared_mutex> lock(mutex_);
    const auto found = by_name_.find(name);
    if (found != by_name_.end()) return *found->second;
  }
  const Unit unit = make();
  if (is_capturing(stream)) {  // nothing may be loaded now: prepared, or refused
    const CompiledKernel& compiled = library_.get(unit, target_, false);
    std::unique_lock<std::shared_mutex> lock(mutex_);
    const auto found = by_key_.find(compiled.name);
    if (found == by_key_.end()) {
      fail(FULMEN_NOT_PREPARED,
           "kernel {} is not prepared, and the stream is capturing: call fulmen_prepare, or the op once before the "
           "capture ({})",
           unit.kernel, unit.config_json);
    }
    return *(by_name_[name] = found->second.get());
  }
  const LoadedKernel& kernel = loaded(unit, true);
  std::unique_lock<std::shared_mutex> lock(mutex_);
  by_name_[name] = &kernel;
  return kernel;
}

void State::launch(const LoadedKernel& kernel, Stream stream, int64_t grid, const void* params) const {
  constexpr int64_t kMaxGrid = 0x7fffffff;
  launches_.fetch_add(1, std::memory_order_relaxed);
  kernel.launch(device_, stream, static_cast<unsigned>(std::clamp<int64_t>(grid, 1, kMaxGrid)), params, dependent_launch_);
}

State& state_of(fulmen_context& context) { return static_cast<State&>(*context.device); }

std::unique_ptr<DeviceState> make_state(int device_index, const ContextPaths& paths) {
  return std::make_unique<State>(device_index, paths);
}

}  // namespace fulmen::cuda
