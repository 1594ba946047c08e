// What the engine itself needs of the CUDA driver, opened at run time: memory, streams, events, graphs. Kernels are
// Fulmen's; nothing here launches one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace fulmen::engine::cuda {

/// There is no GPU to be used; what() is one line that names the missing piece.
class Unavailable : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using DevicePointer = unsigned long long;
using Handle = struct Opaque*;

/// The driver's functions; prototypes are our own. Results are CUresult, 0: success.
struct Driver {
  int (*init)(unsigned);
  int (*driver_version)(int*);
  int (*error_name)(int, const char**);
  int (*device_count)(int*);
  int (*device_get)(int*, int);
  int (*device_name)(char*, int, int);
  int (*device_attribute)(int*, int, int);
  int (*primary_retain)(Handle*, int);
  int (*primary_release)(int);
  int (*set_current)(Handle);
  int (*allocate)(DevicePointer*, size_t);
  int (*release)(DevicePointer);
  int (*allocate_host)(void**, size_t, unsigned);
  int (*release_host)(void*);
  int (*copy_up)(DevicePointer, const void*, size_t);
  int (*copy_down)(void*, DevicePointer, size_t);
  int (*copy_up_async)(DevicePointer, const void*, size_t, Handle);
  int (*copy_down_async)(void*, DevicePointer, size_t, Handle);
  int (*copy_device_async)(DevicePointer, DevicePointer, size_t, Handle);
  int (*fill)(DevicePointer, unsigned char, size_t);
  int (*stream_create)(Handle*, unsigned);
  int (*stream_destroy)(Handle);
  int (*stream_synchronize)(Handle);
  int (*capture_begin)(Handle, int);
  int (*capture_end)(Handle, Handle*);
  int (*graph_instantiate)(Handle*, Handle, unsigned long long);
  int (*graph_launch)(Handle, Handle);
  int (*graph_exec_destroy)(Handle);
  int (*graph_destroy)(Handle);
  int (*graph_nodes)(Handle, Handle*, size_t*);
  int (*graph_node_type)(Handle, int*);
  int (*event_create)(Handle*, unsigned);
  int (*event_destroy)(Handle);
  int (*event_record)(Handle, Handle, unsigned);  // cuEventRecordWithFlags
  int (*event_elapsed)(float*, Handle, Handle);

  /// Opened once in a process. Throws Unavailable.
  static const Driver& get();
};

/// Bytes that came to the host through Driver's functions since the process began.
int64_t bytes_from_device();

/// Throws std::runtime_error with the call and the driver's name for the error.
void check(int result, const char* call);

/// The primary context of a device, current on the calling thread.
class Device {
 public:
  explicit Device(int index);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  void make_current() const;
  const std::string& name() const { return name_; }
  int driver_major() const { return driver_major_; }
  /// Bytes per second of the memory bus, from its clock and width; 0 if the driver doesn't tell.
  double bandwidth() const { return bandwidth_; }

 private:
  int device_ = 0, driver_major_ = 0;
  Handle context_ = nullptr;
  std::string name_;
  double bandwidth_ = 0;
};

/// Zeroed device memory.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes);
  ~Memory();
  Memory(Memory&& other) noexcept : address_(std::exchange(other.address_, 0)), bytes_(std::exchange(other.bytes_, 0)) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  void upload(const void* data, size_t bytes);
  DevicePointer address() const { return address_; }
  size_t bytes() const { return bytes_; }
  // An address of the device: nothing on the host follows it. NOLINTNEXTLINE(performance-no-int-to-ptr)
  char* at(size_t offset = 0) const { return reinterpret_cast<char*>(address_ + offset); }

 private:
  DevicePointer address_ = 0;
  size_t bytes_ = 0;
};

/// Page-locked host memory, for copies that don't wait.
class Pinned {
 public:
  explicit Pinned(size_t bytes);
  ~Pinned();
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_ = nullptr;
};

class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  Handle get() const { return handle_; }
  void synchronize() const;

 private:
  Handle handle_ = nullptr;
};

class Event {
 public:
  Event();
  ~Event();
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&&) = delete;
  /// Inside a capture the record becomes a node of the graph.
  void record(const Stream& stream, bool capturing) const;
  double seconds_since(const Event& earlier) const;

 private:
  Handle handle_ = nullptr;
};

class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// Records what `work` issues on the stream, without running it.
  template <class Work>
  void capture(const Stream& stream, const Work& work) {
    begin(stream);
    try {
      work();
    } catch (...) {
      abandon(stream);
      throw;
    }
    end(stream);
  }
  void launch(const Stream& stream) const;
  bool empty() const { return executable_ == nullptr; }

  struct Nodes {
    int64_t kernels = 0, copies = 0, others = 0;
  };
  const Nodes& nodes() const { return nodes_; }

 private:
  void begin(const Stream& stream);
  void end(const Stream& stream);
  void abandon(const Stream& stream) noexcept;
  Handle executable_ = nullptr;
  Nodes nodes_;
};

}  // namespace fulmen::engine::cuda
