// The CUDA driver, opened at run time: Fulmen is built without a toolkit and starts without a GPU.
// Prototypes are our own; the table below lists every entry point used, with the exported (versioned) symbol.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/error.hpp"

namespace fulmen::cuda {

using Result = int;  // CUresult
using DeviceId = int;
using DevicePtr = unsigned long long;
struct CtxOpaque;
struct StreamOpaque;
struct ModuleOpaque;
struct LibraryOpaque;
struct KernelOpaque;
struct FunctionOpaque;
struct EventOpaque;
struct GraphOpaque;
struct GraphExecOpaque;
using Ctx = CtxOpaque*;
using Stream = StreamOpaque*;
using Module = ModuleOpaque*;
using Library = LibraryOpaque*;
using KernelHandle = KernelOpaque*;
using Function = FunctionOpaque*;
using Event = EventOpaque*;
using Graph = GraphOpaque*;
using GraphExec = GraphExecOpaque*;

// CUlaunchAttribute and CUlaunchConfig as the driver's ABI lays them out.
struct LaunchAttribute {
  int id;
  int pad;
  union {
    char bytes[64];
    int programmatic_stream_serialization;
  } value;
};
static_assert(sizeof(LaunchAttribute) == 72);
struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z;
  unsigned block_x, block_y, block_z;
  unsigned shared_bytes;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned num_attributes;
};
static_assert(sizeof(LaunchConfig) == 56);

inline constexpr int kAttributeProgrammaticStreamSerialization = 6;

enum DeviceAttribute : int {
  kMaxSharedPerBlock = 8,
  kClockRateKhz = 13,
  kMultiprocessorCount = 16,
  kL2Bytes = 38,
  kMemoryClockKhz = 36,
  kMemoryBusWidth = 37,
  kComputeMajor = 75,
  kComputeMinor = 76,
  kMaxSharedPerMultiprocessor = 81,
  kMaxSharedPerBlockOptin = 97,
};
enum FunctionAttribute : int {
  kFunctionSharedBytes = 1,
  kFunctionLocalBytes = 3,
  kFunctionNumRegs = 4,
  kFunctionMaxDynamicShared = 8,
  kFunctionPreferredCarveout = 9,
};

// name, symbol, parameters; the second list may be missing in older drivers.
#define FULMEN_CUDA_REQUIRED(F)                                                                                     \
  F(Init, "cuInit", (unsigned))                                                                                     \
  F(DriverGetVersion, "cuDriverGetVersion", (int*))                                                                 \
  F(GetErrorName, "cuGetErrorName", (Result, const char**))                                                         \
  F(GetErrorString, "cuGetErrorString", (Result, const char**))                                                     \
  F(DeviceGetCount, "cuDeviceGetCount", (int*))                                                                     \
  F(DeviceGet, "cuDeviceGet", (DeviceId*, int))                                                                     \
  F(DeviceGetName, "cuDeviceGetName", (char*, int, DeviceId))                                                       \
  F(DeviceGetAttribute, "cuDeviceGetAttribute", (int*, int, DeviceId))                                              \
  F(DeviceTotalMem, "cuDeviceTotalMem_v2", (size_t*, DeviceId))                                                     \
  F(PrimaryRetain, "cuDevicePrimaryCtxRetain", (Ctx*, DeviceId))                                                    \
  F(PrimaryRelease, "cuDevicePrimaryCtxRelease_v2", (DeviceId))                                                     \
  F(CtxCreate, "cuCtxCreate_v2", (Ctx*, unsigned, DeviceId))                                                        \
  F(CtxDestroy, "cuCtxDestroy_v2", (Ctx))                                                                           \
  F(CtxGetCurrent, "cuCtxGetCurrent", (Ctx*))                                                                       \
  F(CtxSetCurrent, "cuCtxSetCurrent", (Ctx))                                                                        \
  F(CtxPush, "cuCtxPushCurrent_v2", (Ctx))                                                                          \
  F(CtxPop, "cuCtxPopCurrent_v2", (Ctx*))                                                                           \
  F(CtxGetDevice, "cuCtxGetDevice", (DeviceId*))                                                                    \
  F(CtxSynchronize, "cuCtxSynchronize", ())                                                                         \
  F(StreamCreate, "cuStreamCreate", (Stream*, unsigned))                                                            \
  F(StreamDestroy, "cuStreamDestroy_v2", (Stream))                                                                  \
  F(StreamSynchronize, "cuStreamSynchronize", (Stream))                                                             \
  F(StreamGetCtx, "cuStreamGetCtx", (Stream, Ctx*))                                                                 \
  F(StreamIsCapturing, "cuStreamIsCapturing", (Stream, int*))                                                       \
  F(StreamBeginCapture, "cuStreamBeginCapture_v2", (Stream, int))                                                   \
  F(StreamEndCapture, "cuStreamEndCapture", (Stream, Graph*))                                                       \
  F(StreamWaitEvent, "cuStreamWaitEvent", (Stream, Event, unsigned))                                                \
  F(GraphInstantiate, "cuGraphInstantiateWithFlags", (GraphExec*, Graph, unsigned long long))                       \
  F(GraphLaunch, "cuGraphLaunch", (GraphExec, Stream))                                                              \
  F(GraphExecDestroy, "cuGraphExecDestroy", (GraphExec))                                                            \
  F(GraphDestroy, "cuGraphDestroy", (Graph))                                                                        \
  F(EventCreate, "cuEventCreate", (Event*, unsigned))                                                               \
  F(EventDestroy, "cuEventDestroy_v2", (Event))                                                                     \
  F(EventRecord, "cuEventRecord", (Event, Stream))                                                                  \
  F(EventQuery, "cuEventQuery", (Event))                                                                            \
  F(EventSynchronize, "cuEventSynchronize", (Event))                                                                \
  F(EventElapsedTime, "cuEventElapsedTime", (float*, Event, Event))                                                 \
  F(MemAlloc, "cuMemAlloc_v2", (DevicePtr*, size_t))                                                                \
  F(MemFree, "cuMemFree_v2", (DevicePtr))                                                                           \
  F(MemGetInfo, "cuMemGetInfo_v2", (size_t*, size_t*))                                                              \
  F(MemHostAlloc, "cuMemHostAlloc", (void**, size_t, unsigned))                                                     \
  F(MemFreeHost, "cuMemFreeHost", (void*))                                                                          \
  F(CopyHtoD, "cuMemcpyHtoD_v2", (DevicePtr, const void*, size_t))                                                  \
  F(CopyDtoH, "cuMemcpyDtoH_v2", (void*, DevicePtr, size_t))                                                        \
  F(CopyHtoDAsync, "cuMemcpyHtoDAsync_v2", (DevicePtr, const void*, size_t, Stream))                                \
  F(CopyDtoHAsync, "cuMemcpyDtoHAsync_v2", (void*, DevicePtr, size_t, Stream))                                      \
  F(CopyDtoDAsync, "cuMemcpyDtoDAsync_v2", (DevicePtr, DevicePtr, size_t, Stream))                                  \
  F(MemsetD8Async, "cuMemsetD8Async", (DevicePtr, unsigned char, size_t, Stream))                                   \
  F(MemsetD32Async, "cuMemsetD32Async", (DevicePtr, unsigned, size_t, Stream))                                      \
  F(PointerGetAttribute, "cuPointerGetAttribute", (void*, int, DevicePtr))                                          \
  F(ModuleLoadData, "cuModuleLoadData", (Module*, const void*))                                                     \
  F(ModuleUnload, "cuModuleUnload", (Module))                                                                       \
  F(ModuleGetFunction, "cuModuleGetFunction", (Function*, Module, const char*))                                     \
  F(FuncSetAttribute, "cuFuncSetAttribute", (Function, int, int))                                                   \
  F(FuncGetAttribute, "cuFuncGetAttribute", (int*, int, Function))                                                  \
  F(OccupancyBlocks, "cuOccupancyMaxActiveBlocksPerMultiprocessor", (int*, Function, int, size_t))                  \
  F(LaunchKernel, "cuLaunchKernel",                                                                                 \
    (Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void**, void**))
#define FULMEN_CUDA_OPTIONAL(F)                                                                                     \
  F(LaunchKernelEx, "cuLaunchKernelEx", (const LaunchConfig*, Function, void**, void**))                            \
  F(LibraryLoadData, "cuLibraryLoadData", (Library*, const void*, int*, void**, unsigned, int*, void**, unsigned))  \
  F(LibraryUnload, "cuLibraryUnload", (Library))                                                                    \
  F(LibraryGetKernel, "cuLibraryGetKernel", (KernelHandle*, Library, const char*))                                  \
  F(KernelGetFunction, "cuKernelGetFunction", (Function*, KernelHandle))                                            \
  F(KernelSetAttribute, "cuKernelSetAttribute", (int, int, KernelHandle, DeviceId))                                 \
  F(FuncLoad, "cuFuncLoad", (Function))                                                                             \
  F(ThreadExchangeCaptureMode, "cuThreadExchangeStreamCaptureMode", (int*))

struct Driver {
  std::string path;
  int version = 0;  // 12040 is 12.4
#define FULMEN_MEMBER(name, symbol, args) Result(*name) args = nullptr;
  FULMEN_CUDA_REQUIRED(FULMEN_MEMBER)
  FULMEN_CUDA_OPTIONAL(FULMEN_MEMBER)
#undef FULMEN_MEMBER
};

// Opens and initialises the driver at first use. Fails with NO_DEVICE (and says what is missing), or FORKED in the
// child of a process that had used the GPU.
const Driver& driver();
// The same without an error: nullptr and the reason.
const Driver* try_driver(std::string* reason);

// Bytes that any call through driver() has copied from a device to the host since the process began. Nothing in Fulmen
// copies that way; the count is of the calls themselves, so that this stays true.
int64_t bytes_from_device();

// Turns a failed call into an Error that names it; sticky errors have a status of their own.
[[noreturn]] void fail_result(Result result, const char* call);
inline void check(Result result, const char* call) {
  if (result != 0) [[unlikely]] fail_result(result, call);
}
#define FULMEN_CUDA(call) ::fulmen::cuda::check(::fulmen::cuda::driver().call, "cu" #call)

// What a device can do; read once.
struct DeviceInfo {
  int index = 0;
  DeviceId id = 0;
  std::string name;
  int major = 0, minor = 0;
  int num_sms = 0;
  int max_shared_per_block = 0;  // with opt-in
  int max_shared_per_sm = 0;
  int64_t l2_bytes = 0;
  size_t memory_bytes = 0;
};

int device_count();
const DeviceInfo& device_info(int index);

// Makes the stream's CUDA context current while it lives: the stream's own; for the handles 0, 1 and 2 the caller's
// current one if it is of this device, else the device's primary one. The caller's current context is put back.
class StreamScope {
 public:
  StreamScope(int device_index, void* stream);
  ~StreamScope();
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;
  Ctx context() const { return context_; }
  Stream stream() const { return stream_; }

 private:
  Ctx context_ = nullptr;
  Stream stream_ = nullptr;
  bool pushed_ = false;
};

bool is_capturing(Stream stream);

}  // namespace fulmen::cuda
