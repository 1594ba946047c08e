// A driver of one H100 that runs nothing: enough for what the host side of Fulmen decides.
#include "cuda/fake_driver.hpp"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/driver.hpp"

using namespace fulmen::cuda;

extern "C" __attribute__((visibility("default"))) FakeDriver fulmen_fake_driver;
FakeDriver fulmen_fake_driver;

namespace {

thread_local std::vector<Ctx> stack;
const auto kContext = reinterpret_cast<Ctx>(0x1000);
template <class T> T handle(uintptr_t value) { return reinterpret_cast<T>(value); }
constexpr Result kNotReady = 600;

// A call that ends a capture of another thread in global mode, unless the thread has said that it knows.
void unsafe() {
  if (!fulmen_fake_driver.relaxed) ++fulmen_fake_driver.unsafe_calls;
}

}  // namespace

#define FAKE(name, symbol, args)                                                            \
  extern "C" __attribute__((visibility("default"))) Result fake_##name args __asm__(symbol); \
  Result fake_##name args

FAKE(DriverGetVersion, "cuDriverGetVersion", (int* version)) { return *version = 13000, 0; }
FAKE(GetErrorName, "cuGetErrorName", (Result, const char** name)) { return *name = "CUDA_ERROR_FAKE", 0; }
FAKE(GetErrorString, "cuGetErrorString", (Result, const char** text)) { return *text = "a fake error", 0; }
FAKE(DeviceGetCount, "cuDeviceGetCount", (int* count)) { return *count = 1, 0; }
FAKE(DeviceGet, "cuDeviceGet", (DeviceId * id, int)) { return *id = 0, 0; }
FAKE(DeviceGetName, "cuDeviceGetName", (char* name, int size, DeviceId)) { return std::strncpy(name, "Fake H100", static_cast<size_t>(size)), 0; }
FAKE(DeviceGetAttribute, "cuDeviceGetAttribute", (int* value, int which, DeviceId)) {
  *value = which == kComputeMajor ? 9 : which == kMultiprocessorCount ? 132 : which == kMaxSharedPerBlockOptin ? 227 * 1024
           : which == kMaxSharedPerMultiprocessor ? 228 * 1024 : which == kL2Bytes ? 50 << 20 : 0;
  return 0;
}
FAKE(PrimaryRetain, "cuDevicePrimaryCtxRetain", (Ctx * context, DeviceId)) { return *context = kContext, 0; }
FAKE(CtxGetCurrent, "cuCtxGetCurrent", (Ctx * context)) { return *context = stack.empty() ? nullptr : stack.back(), 0; }
FAKE(CtxPush, "cuCtxPushCurrent_v2", (Ctx context)) { return stack.push_back(context), 0; }
FAKE(CtxPop, "cuCtxPopCurrent_v2", (Ctx * context)) {
  *context = stack.back();
  stack.pop_back();
  return 0;
}
FAKE(CtxGetDevice, "cuCtxGetDevice", (DeviceId * id)) { return *id = 0, 0; }
FAKE(StreamGetCtx, "cuStreamGetCtx", (Stream, Ctx* context)) { return *context = kContext, 0; }
FAKE(StreamIsCapturing, "cuStreamIsCapturing", (Stream, int* status)) { return *status = fulmen_fake_driver.capturing, 0; }
FAKE(ThreadExchangeCaptureMode, "cuThreadExchangeStreamCaptureMode", (int* mode)) {
  const int before = fulmen_fake_driver.relaxed ? 2 : 0;
  fulmen_fake_driver.relaxed = *mode == 2;
  return *mode = before, 0;
}
FAKE(EventCreate, "cuEventCreate", (Event * event, unsigned)) { return *event = handle<Event>(0x3000), 0; }
FAKE(EventQuery, "cuEventQuery", (Event)) { return unsafe(), fulmen_fake_driver.events_pend ? kNotReady : 0; }
FAKE(EventSynchronize, "cuEventSynchronize", (Event)) { return ++fulmen_fake_driver.waits, 0; }
FAKE(MemAlloc, "cuMemAlloc_v2", (DevicePtr*, size_t)) { return ++fulmen_fake_driver.device_allocations, 2; }
FAKE(CopyHtoDAsync, "cuMemcpyHtoDAsync_v2", (DevicePtr to, const void* from, size_t bytes, Stream)) {
  if (fulmen_fake_driver.on_copy_up) fulmen_fake_driver.on_copy_up(reinterpret_cast<void*>(to), from, bytes, fulmen_fake_driver.user);
  return 0;
}
FAKE(MemHostAlloc, "cuMemHostAlloc", (void** data, size_t bytes, unsigned)) {
  unsafe();
  ++fulmen_fake_driver.host_allocations;
  return *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256), 0;
}
FAKE(MemFreeHost, "cuMemFreeHost", (void* data)) { return ++fulmen_fake_driver.host_frees, std::free(data), 0; }
FAKE(LibraryLoadData, "cuLibraryLoadData", (Library * library, const void*, int*, void**, unsigned, int*, void**, unsigned)) {
  return ++fulmen_fake_driver.loads, *library = handle<Library>(0x4000), 0;
}
FAKE(LibraryGetKernel, "cuLibraryGetKernel", (KernelHandle * kernel, Library, const char*)) { return *kernel = handle<KernelHandle>(0x5000), 0; }
FAKE(KernelGetFunction, "cuKernelGetFunction", (Function * function, KernelHandle)) { return *function = handle<Function>(0x6000), 0; }
FAKE(LaunchKernelEx, "cuLaunchKernelEx", (const LaunchConfig*, Function, void** params, void**)) {
  ++fulmen_fake_driver.launches;
  if (fulmen_fake_driver.launch_result == 0 && fulmen_fake_driver.on_launch) fulmen_fake_driver.on_launch(params[0], fulmen_fake_driver.user);
  return fulmen_fake_driver.launch_result;
}
