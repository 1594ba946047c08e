#include "engine/cuda_driver.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <atomic>
#include <vector>

namespace fulmen::engine::cuda {
namespace {

template <class Function>
void find(void* library, Function& function, const char* symbol) {
  function = reinterpret_cast<Function>(dlsym(library, symbol));
  if (!function) throw Unavailable(fmt::format("libcuda.so.1 lacks {}: the driver is too old", symbol));
}

std::atomic<int64_t> g_bytes_from_device{0};
int (*g_copy_down)(void*, DevicePointer, size_t) = nullptr;
int (*g_copy_down_async)(void*, DevicePointer, size_t, Handle) = nullptr;

int counted_copy_down(void* to, DevicePointer from, size_t bytes) {
  g_bytes_from_device += static_cast<int64_t>(bytes);
  return g_copy_down(to, from, bytes);
}
int counted_copy_down_async(void* to, DevicePointer from, size_t bytes, Handle stream) {
  g_bytes_from_device += static_cast<int64_t>(bytes);
  return g_copy_down_async(to, from, bytes, stream);
}

Driver open_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) throw Unavailable("no NVIDIA driver: libcuda.so.1 was not found");
  Driver d;
  find(library, d.init, "cuInit");
  find(library, d.driver_version, "cuDriverGetVersion");
  find(library, d.error_name, "cuGetErrorName");
  find(library, d.device_count, "cuDeviceGetCount");
  find(library, d.device_get, "cuDeviceGet");
  find(library, d.device_name, "cuDeviceGetName");
  find(library, d.device_attribute, "cuDeviceGetAttribute");
  find(library, d.primary_retain, "cuDevicePrimaryCtxRetain");
  find(library, d.primary_release, "cuDevicePrimaryCtxRelease_v2");
  find(library, d.set_current, "cuCtxSetCurrent");
  find(library, d.allocate, "cuMemAlloc_v2");
  find(library, d.release, "cuMemFree_v2");
  find(library, d.allocate_host, "cuMemHostAlloc");
  find(library, d.release_host, "cuMemFreeHost");
  find(library, d.copy_up, "cuMemcpyHtoD_v2");
  find(library, g_copy_down, "cuMemcpyDtoH_v2");
  find(library, g_copy_down_async, "cuMemcpyDtoHAsync_v2");
  d.copy_down = counted_copy_down;
  d.copy_down_async = counted_copy_down_async;
  find(library, d.copy_up_async, "cuMemcpyHtoDAsync_v2");
  find(library, d.copy_device_async, "cuMemcpyDtoDAsync_v2");
  find(library, d.fill, "cuMemsetD8_v2");
  find(library, d.stream_create, "cuStreamCreate");
  find(library, d.stream_destroy, "cuStreamDestroy_v2");
  find(library, d.stream_synchronize, "cuStreamSynchronize");
  find(library, d.capture_begin, "cuStreamBeginCapture_v2");
  find(library, d.capture_end, "cuStreamEndCapture");
  find(library, d.graph_instantiate, "cuGraphInstantiateWithFlags");
  find(library, d.graph_launch, "cuGraphLaunch");
  find(library, d.graph_exec_destroy, "cuGraphExecDestroy");
  find(library, d.graph_destroy, "cuGraphDestroy");
  find(library, d.graph_nodes, "cuGraphGetNodes");
  find(library, d.graph_node_type, "cuGraphNodeGetType");
  find(library, d.event_create, "cuEventCreate");
  find(library, d.event_destroy, "cuEventDestroy_v2");
  find(library, d.event_record, "cuEventRecordWithFlags");
  find(library, d.event_elapsed, "cuEventElapsedTime");
  return d;
}

constexpr unsigned kNonBlockingStream = 1;
constexpr int kCaptureThreadLocal = 1;
constexpr unsigned kRecordExternal = 1;
constexpr int kKernelNode = 0, kCopyNode = 1;
constexpr int kMemoryClockKhz = 36, kMemoryBusBits = 37;

}  // namespace

const Driver& Driver::get() {
  static const Driver driver = open_driver();  // a failure is thrown again by the next call
  return driver;
}

int64_t bytes_from_device() { return g_bytes_from_device; }

void check(int result, const char* call) {
  if (result == 0) return;
  const char* name = nullptr;
  Driver::get().error_name(result, &name);
  throw std::runtime_error(fmt::format("{}: {}", call, name ? name : "unknown error"));
}

#define FULMEN_DRIVER(call, ...) check(Driver::get().call(__VA_ARGS__), #call)

Device::Device(int index) {
  const Driver& driver = Driver::get();
  if (const int result = driver.init(0); result != 0) {
    const char* name = nullptr;
    driver.error_name(result, &name);
    throw Unavailable(fmt::format("the NVIDIA driver doesn't start: {}", name ? name : "unknown error"));
  }
  int count = 0;
  FULMEN_DRIVER(device_count, &count);
  if (index >= count) throw Unavailable(fmt::format("no GPU of index {}: the driver knows {}", index, count));
  FULMEN_DRIVER(device_get, &device_, index);
  char name[256] = {};
  FULMEN_DRIVER(device_name, name, static_cast<int>(sizeof name), device_);
  name_ = name;
  int version = 0, clock = 0, bits = 0;
  FULMEN_DRIVER(driver_version, &version);
  driver_major_ = version / 1000;
  if (driver.device_attribute(&clock, kMemoryClockKhz, device_) == 0 &&
      driver.device_attribute(&bits, kMemoryBusBits, device_) == 0)
    bandwidth_ = 2.0 * clock * 1e3 * bits / 8;  // two transfers a clock
  FULMEN_DRIVER(primary_retain, &context_, device_);
  make_current();
}

Device::~Device() { Driver::get().primary_release(device_); }
void Device::make_current() const { FULMEN_DRIVER(set_current, context_); }

Memory::Memory(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  if (Driver::get().allocate(&address_, bytes) != 0)
    throw Unavailable(fmt::format("the GPU's memory has no room for {} MB more", (bytes + 999999) / 1000000));
  FULMEN_DRIVER(fill, address_, static_cast<unsigned char>(0), bytes);
}
Memory::~Memory() {
  if (address_) Driver::get().release(address_);
}
void Memory::upload(const void* data, size_t bytes) { FULMEN_DRIVER(copy_up, address_, data, bytes); }

Pinned::Pinned(size_t bytes) { FULMEN_DRIVER(allocate_host, &data_, bytes, 0u); }
Pinned::~Pinned() { Driver::get().release_host(data_); }

Stream::Stream() { FULMEN_DRIVER(stream_create, &handle_, kNonBlockingStream); }
Stream::~Stream() { Driver::get().stream_destroy(handle_); }
void Stream::synchronize() const { FULMEN_DRIVER(stream_synchronize, handle_); }

Event::Event() { FULMEN_DRIVER(event_create, &handle_, 0u); }
Event::~Event() {
  if (handle_) Driver::get().event_destroy(handle_);
}
void Event::record(const Stream& stream, bool capturing) const {
  FULMEN_DRIVER(event_record, handle_, stream.get(), capturing ? kRecordExternal : 0u);
}
double Event::seconds_since(const Event& earlier) const {
  float ms = 0;
  FULMEN_DRIVER(event_elapsed, &ms, earlier.handle_, handle_);
  return ms * 1e-3;
}

Graph::~Graph() {
  if (executable_) Driver::get().graph_exec_destroy(executable_);
}
void Graph::begin(const Stream& stream) { FULMEN_DRIVER(capture_begin, stream.get(), kCaptureThreadLocal); }
void Graph::end(const Stream& stream) {
  Handle graph = nullptr;
  FULMEN_DRIVER(capture_end, stream.get(), &graph);
  size_t count = 0;
  FULMEN_DRIVER(graph_nodes, graph, nullptr, &count);
  std::vector<Handle> nodes(count);
  FULMEN_DRIVER(graph_nodes, graph, nodes.data(), &count);
  nodes_ = {};
  for (const Handle node : nodes) {
    int type = 0;
    FULMEN_DRIVER(graph_node_type, node, &type);
    ++(type == kKernelNode ? nodes_.kernels : type == kCopyNode ? nodes_.copies : nodes_.others);
  }
  const int result = Driver::get().graph_instantiate(&executable_, graph, 0);
  Driver::get().graph_destroy(graph);
  check(result, "graph_instantiate");
}
void Graph::abandon(const Stream& stream) noexcept {
  Handle graph = nullptr;
  Driver::get().capture_end(stream.get(), &graph);
  if (graph) Driver::get().graph_destroy(graph);
}
void Graph::launch(const Stream& stream) const { FULMEN_DRIVER(graph_launch, executable_, stream.get()); }

}  // namespace fulmen::engine::cuda
