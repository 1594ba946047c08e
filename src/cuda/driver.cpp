#include "cuda/driver.hpp"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <utility>

namespace fulmen::cuda {
namespace {

// Set by the child of a fork when the parent had initialised CUDA: the driver cannot be used there.
std::atomic<bool> g_initialised{false};
std::atomic<bool> g_forked{false};

std::atomic<int64_t> g_bytes_from_device{0};
Result (*g_copy_down)(void*, DevicePtr, size_t) = nullptr;
Result (*g_copy_down_async)(void*, DevicePtr, size_t, Stream) = nullptr;

Result counted_copy_down(void* to, DevicePtr from, size_t bytes) {
  g_bytes_from_device += static_cast<int64_t>(bytes);
  return g_copy_down(to, from, bytes);
}
Result counted_copy_down_async(void* to, DevicePtr from, size_t bytes, Stream stream) {
  g_bytes_from_device += static_cast<int64_t>(bytes);
  return g_copy_down_async(to, from, bytes, stream);
}

struct Opened {
  Driver driver;
  bool usable = false;
  std::string reason;
};

Opened open_driver() {
  Opened opened;
  // An absolute file for tests and unusual machines; else what the loader finds (WSL keeps it out of the default path).
  const char* named = secure_getenv("FULMEN_CUDA_DRIVER");
  const char* candidates[] = {named != nullptr && named[0] == '/' ? named : nullptr, "libcuda.so.1",
                              "/usr/lib/wsl/lib/libcuda.so.1"};
  void* handle = nullptr;
  for (const char* path : candidates) {
    if (path == nullptr || handle != nullptr) continue;
    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) {
      opened.driver.path = path;
    } else {
      const char* text = dlerror();
      opened.reason = text != nullptr ? text : path;
    }
  }
  if (handle == nullptr) {
    opened.reason = "the CUDA driver could not be opened: " + opened.reason;
    return opened;
  }
#define FULMEN_LOAD(name, symbol, args)                                            \
  opened.driver.name = reinterpret_cast<Result(*) args>(dlsym(handle, symbol));
  FULMEN_CUDA_REQUIRED(FULMEN_LOAD)
  FULMEN_CUDA_OPTIONAL(FULMEN_LOAD)
#undef FULMEN_LOAD
#define FULMEN_PRESENT(name, symbol, args)                                                          \
  if (opened.driver.name == nullptr) {                                                              \
    opened.reason = "the CUDA driver lacks " symbol ": version 11.4 or newer is needed";            \
    return opened;                                                                                  \
  }
  FULMEN_CUDA_REQUIRED(FULMEN_PRESENT)
#undef FULMEN_PRESENT
  const Result result = opened.driver.Init(0);
  if (result != 0) {
    const char* text = nullptr;
    opened.driver.GetErrorString(result, &text);
    opened.reason = std::string("cuInit failed: ") + (text != nullptr ? text : "unknown error");
    return opened;
  }
  opened.driver.DriverGetVersion(&opened.driver.version);
  g_copy_down = std::exchange(opened.driver.CopyDtoH, counted_copy_down);
  g_copy_down_async = std::exchange(opened.driver.CopyDtoHAsync, counted_copy_down_async);
  opened.usable = true;
  pthread_atfork(nullptr, nullptr, [] {
    if (g_initialised.load(std::memory_order_relaxed)) g_forked.store(true, std::memory_order_relaxed);
  });
  g_initialised.store(true, std::memory_order_relaxed);
  return opened;
}

const Opened& opened_driver() {
  static const Opened* opened = new Opened(open_driver());  // never destroyed: the driver outlives static destructors
  return *opened;
}

bool is_sticky(Result result) {
  switch (result) {
    case 700:  // illegal address
    case 714:  // hardware stack error
    case 715:  // illegal instruction
    case 716:  // misaligned address
    case 717:  // invalid address space
    case 718:  // invalid program counter
    case 719:  // launch failed
    case 710:  // device assert
    case 214:  // uncorrectable ECC error
    case 220:  // NVLink error
    case 702:  // launch timeout
    case 721:  // contained
      return true;
    default:
      return false;
  }
}

}  // namespace

int64_t bytes_from_device() { return g_bytes_from_device; }

const Driver* try_driver(std::string* reason) {
  if (g_forked.load(std::memory_order_relaxed)) {
    if (reason != nullptr) {
      *reason = "this process was forked from one that had used the GPU; start workers before the first use, or by spawn";
    }
    return nullptr;
  }
  const Opened& opened = opened_driver();
  if (!opened.usable) {  // NOLINT(clang-analyzer-core.uninitialized.Branch): has an initial value
    if (reason != nullptr) *reason = opened.reason;
    return nullptr;
  }
  return &opened.driver;
}

const Driver& driver() {
  std::string reason;
  const Driver* opened = try_driver(&reason);
  if (opened == nullptr) {
    throw Error(g_forked.load(std::memory_order_relaxed) ? FULMEN_FORKED : FULMEN_NO_DEVICE, reason);
  }
  return *opened;
}

void fail_result(Result result, const char* call) {
  const Driver& api = driver();
  const char* name = nullptr;
  const char* text = nullptr;
  api.GetErrorName(result, &name);
  api.GetErrorString(result, &text);
  fulmen_status status = FULMEN_CUDA_ERROR;
  if (result == 2) status = FULMEN_OUT_OF_MEMORY;
  if (result == 3 || result == 100 || result == 101) status = FULMEN_NO_DEVICE;
  if (is_sticky(result)) status = FULMEN_CUDA_STICKY;
  const std::string_view expression(call);
  fail(status, "{} failed: {} ({}){}", expression.substr(0, expression.find('(')), name != nullptr ? name : "CUresult",
       text != nullptr ? text : std::to_string(result).c_str(),
       status == FULMEN_CUDA_STICKY ? "; the CUDA context is lost and the process must restart it" : "");
}

int device_count() {
  int count = 0;
  FULMEN_CUDA(DeviceGetCount(&count));
  return count;
}

const DeviceInfo& device_info(int index) {
  struct Table {
    std::mutex mutex;
    std::vector<std::unique_ptr<DeviceInfo>> devices;
  };
  static Table* table = new Table;
  const int count = device_count();
  if (index < 0 || index >= count) fail(FULMEN_NO_DEVICE, "device_index: expected 0 .. {}, found {}", count - 1, index);
  std::lock_guard<std::mutex> lock(table->mutex);
  if (table->devices.size() < static_cast<size_t>(count)) table->devices.resize(static_cast<size_t>(count));
  auto& slot = table->devices[static_cast<size_t>(index)];
  if (slot == nullptr) {
    auto info = std::make_unique<DeviceInfo>();
    info->index = index;
    FULMEN_CUDA(DeviceGet(&info->id, index));
    char name[128] = {0};
    FULMEN_CUDA(DeviceGetName(name, sizeof name - 1, info->id));
    info->name = name;
    const auto attribute = [&](DeviceAttribute which) {
      int value = 0;
      FULMEN_CUDA(DeviceGetAttribute(&value, which, info->id));
      return value;
    };
    info->major = attribute(kComputeMajor);
    info->minor = attribute(kComputeMinor);
    info->num_sms = attribute(kMultiprocessorCount);
    info->max_shared_per_block = attribute(kMaxSharedPerBlockOptin);
    info->max_shared_per_sm = attribute(kMaxSharedPerMultiprocessor);
    info->l2_bytes = attribute(kL2Bytes);
    FULMEN_CUDA(DeviceTotalMem(&info->memory_bytes, info->id));
    slot = std::move(info);
  }
  return *slot;
}

namespace {

// One reference to a device's primary context for the life of the process.
Ctx primary_context(const DeviceInfo& info) {
  struct Table {
    std::mutex mutex;
    std::vector<Ctx> contexts;
  };
  static Table* table = new Table;
  std::lock_guard<std::mutex> lock(table->mutex);
  const auto index = static_cast<size_t>(info.index);
  if (table->contexts.size() <= index) table->contexts.resize(index + 1, nullptr);
  if (table->contexts[index] == nullptr) FULMEN_CUDA(PrimaryRetain(&table->contexts[index], info.id));
  return table->contexts[index];
}

}  // namespace

StreamScope::StreamScope(int device_index, void* stream) : stream_(static_cast<Stream>(stream)) {
  const Driver& api = driver();
  Ctx current = nullptr;
  check(api.CtxGetCurrent(&current), "cuCtxGetCurrent");
  if (reinterpret_cast<uintptr_t>(stream) > 2) {
    check(api.StreamGetCtx(stream_, &context_), "cuStreamGetCtx");
  } else {
    context_ = current;
    DeviceId found = -1;
    if (current != nullptr) check(api.CtxGetDevice(&found), "cuCtxGetDevice");
    const DeviceInfo& info = device_info(device_index);
    if (found != info.id) context_ = primary_context(info);
  }
  if (context_ != current) {
    check(api.CtxPush(context_), "cuCtxPushCurrent");
    pushed_ = true;
  }
}

StreamScope::~StreamScope() {
  if (!pushed_) return;
  Ctx popped = nullptr;
  if (const Driver* api = try_driver(nullptr)) api->CtxPop(&popped);
}

bool is_capturing(Stream stream) {
  int status = 0;
  // The legacy stream cannot be asked while another stream of its context captures in global mode; that is an answer.
  const Result result = driver().StreamIsCapturing(stream, &status);
  if (result == 906) return true;  // CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
  check(result, "cuStreamIsCapturing");
  return status != 0;
}

}  // namespace fulmen::cuda
