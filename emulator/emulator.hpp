// Runs a kernel of kernels/ on the CPU and hunts for what a GPU would hide. What it models: docs/emulator.md.
//
//   auto q = emulator::Buffer<bf16>::input("q", values);
//   auto o = emulator::Buffer<bf16>::output("o", rows * dim);
//   const auto report = emulator::launch({.name = "scale", .grid = {rows}, .block = {128}, .seed = seed}, scale_kernel, params);
//   EXPECT_TRUE(report.clean()) << report.text();
//
// One launch runs at a time in a process; it is deterministic for its seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace fulmen::emulator {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

enum class FaultKind {
  race,
  out_of_bounds,
  misaligned,
  uninitialised,
  divergent,
  deadlock,
  pending_copy,      // memory touched while an asynchronous copy to it is in flight
  in_flight_at_exit,
  read_only,
  limit,             // of the architecture or of the launch
  before_wait,       // overlapped launch: global memory touched before griddepcontrol.wait
  trap,
};
const char* fault_name(FaultKind kind);

struct Fault {
  FaultKind kind;
  std::string text;  // several lines: what, where, against what
};

struct Counters {
  uint64_t global_bytes = 0;           // asked for by lanes, both directions
  uint64_t global_read_bytes = 0, global_write_bytes = 0;
  uint64_t global_warp_bytes = 0;      // of whole words, what all lanes of an instruction read alike once (Launch::count only)
  uint64_t global_least_bytes = 0;     // each byte that is read or written counted once for it (Launch::count only)
  uint64_t global_sectors = 0;         // of 32 bytes, per warp instruction (Launch::count only)
  uint64_t shared_bytes = 0;
  uint64_t shared_wavefronts = 0;      // passes that warp accesses took (Launch::count only)
  uint64_t shared_ideal_wavefronts = 0;  // passes without any bank conflict
  uint64_t matrix_instructions = 0;
  uint64_t barrier_waits = 0;          // threads that arrived at a block barrier
  uint64_t warp_collectives = 0;
  uint64_t async_copies = 0;
  uint64_t atomics = 0;
};

// What the accesses of one instruction cost (Launch::count only). Shared memory: passes through the banks; global: sectors.
struct AccessCount {
  std::string where;
  bool shared = false;
  uint64_t instructions = 0;  // of warps
  uint64_t bytes = 0;
  uint64_t cost = 0, ideal = 0;  // ideal: without bank conflicts, in as few sectors as hold the bytes
};

struct Launch {
  std::string name = "kernel";
  Dim3 grid{}, block{};
  size_t shared_bytes = 0;
  uint64_t seed = 1;
  unsigned cluster = 1;               // blocks of a cluster; they run at the same time and reach each other's shared memory
  unsigned resident_blocks = 16;      // that run at a time; a kernel whose blocks wait for one another needs all of them
  size_t shared_limit = 227 * 1024;   // per block; 99 KB on sm_86, 163 KB on sm_80
  bool count = false;                 // bank conflicts and sectors, slower
  bool overlapped = false;            // launched beside the kernel before it (griddepcontrol)
};

struct Report {
  std::string kernel;
  uint64_t seed = 0;
  std::vector<Fault> faults;
  Counters counters;
  std::vector<AccessCount> accesses;

  bool clean() const { return faults.empty(); }
  bool has(FaultKind kind) const;
  std::string text() const;
};

// ---- memory that kernels may touch

struct RegionOptions {
  bool read_only = false;
  bool initialised = true;
  bool independent = false;  // of the kernel before: may be touched before griddepcontrol.wait
};

// Makes existing memory known to launches while it lives; `guard` bytes on either side belong to nobody.
class Region {
 public:
  Region(std::string name, const void* data, size_t bytes, RegionOptions options, size_t guard = 0);
  ~Region();
  Region(Region&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Region& operator=(Region&&) = delete;
  void set_initialised();

 private:
  void* handle_;
};

// An array in global memory with guard bands. Outputs start as NaN (all bits one) and count as uninitialised.
template <class T> class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);
  static constexpr size_t kGuard = 512;

 public:
  static Buffer input(std::string name, const std::vector<T>& values, size_t offset = 0) {
    return Buffer(std::move(name), values.data(), values.size(), {.read_only = true}, offset);
  }
  // What no kernel writes, a model's weights: it may be read before the kernel ahead has ended.
  static Buffer constant(std::string name, const std::vector<T>& values, size_t offset = 0) {
    return Buffer(std::move(name), values.data(), values.size(), {.read_only = true, .independent = true}, offset);
  }
  static Buffer inout(std::string name, const std::vector<T>& values, size_t offset = 0) {
    return Buffer(std::move(name), values.data(), values.size(), {}, offset);
  }
  static Buffer output(std::string name, size_t count, size_t offset = 0) {
    return Buffer(std::move(name), nullptr, count, {.initialised = false}, offset);
  }
  static Buffer zeros(std::string name, size_t count) {
    Buffer buffer(std::move(name), nullptr, count, {}, 0);
    std::memset(static_cast<void*>(buffer.data()), 0, count * sizeof(T));
    return buffer;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return count_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  std::vector<T> values() const { return std::vector<T>(data_, data_ + count_); }

  // True while nobody has written around the array (host code included).
  bool guards_intact() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (static_cast<unsigned char>(memory_.get()[offset_ + i]) != 0xff ||
          static_cast<unsigned char>(memory_.get()[offset_ + kGuard + count_ * sizeof(T) + i]) != 0xff) {
        return false;
      }
    }
    return true;
  }

 private:
  // `offset` bytes move the array off its 256-byte alignment.
  Buffer(std::string name, const T* values, size_t count, RegionOptions options, size_t offset)
      : memory_(count * sizeof(T) + 2 * kGuard + offset),
        offset_(offset),
        count_(count),
        data_(reinterpret_cast<T*>(memory_.get() + kGuard + offset)),
        region_(std::move(name), data_, count * sizeof(T), options, kGuard) {
    std::memset(memory_.get(), 0xff, count * sizeof(T) + 2 * kGuard + offset);
    if (values != nullptr && count != 0) std::memcpy(static_cast<void*>(data_), values, count * sizeof(T));
  }

  class Memory {
   public:
    explicit Memory(size_t bytes) : p_(static_cast<char*>(::operator new(bytes, std::align_val_t(256)))) {}
    ~Memory() {
      if (p_ != nullptr) ::operator delete(p_, std::align_val_t(256));
    }
    Memory(Memory&& other) noexcept : p_(std::exchange(other.p_, nullptr)) {}
    char* get() const { return p_; }

   private:
    char* p_;
  };

  Memory memory_;
  size_t offset_;
  size_t count_;
  T* data_;
  Region region_;
};

// ---- running

// `watch` is called with each launch and its report from now on; with `count` all launches count accesses.
void watch_launches(std::function<void(const Launch&, const Report&)> watch, bool count);


// `enter(call)` runs once per thread; the bytes at `call` are the kernel's parameters (constant memory).
Report run(const Launch& launch, void (*enter)(const void* call), const void* call, size_t call_bytes);

template <class Kernel, class... Params>
Report launch(const Launch& options, Kernel kernel, const Params&... params) {
  struct Call {
    Kernel kernel;
    std::tuple<Params...> params;
  };
  const Call call{std::move(kernel), {params...}};
  return run(
      options,
      [](const void* p) __attribute__((no_sanitize("thread"))) {
        const Call& c = *static_cast<const Call*>(p);
        std::apply(c.kernel, c.params);
      },
      &call, sizeof(call));
}

// A launch and what a test found its results to be.
struct Attempt {
  Report report;
  bool right = true;
};

}  // namespace fulmen::emulator
