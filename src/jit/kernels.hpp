// Unit in, machine code out: from memory, from the disk cache, or from the compiler, each kernel once.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "jit/cache.hpp"
#include "jit/nvrtc.hpp"
#include "jit/unit.hpp"
#include "jit/usage.hpp"
#include "plan/targets.hpp"

namespace fulmen {

// Every unit's entry.
inline constexpr const char* kEntryName = "fulmen_entry";

struct CompiledKernel {
  std::string kernel;   // the unit's name
  std::string name;     // of the key, 32 digits: tells two kernels of one name apart
  std::string arch;
  std::string cubin;
  std::string log;
  std::string version;  // of the NVRTC that made it
  ResourceUsage usage;
  int num_threads = 0;
  int smem_bytes = 0;   // dynamic
  double seconds = 0;   // to compile, or to load from disk
  double cpu_seconds = 0;
  bool from_disk = false;
};

struct KernelOptions {
  std::string cache_dir;    // empty: FULMEN_CACHE_DIR, XDG_CACHE_HOME, HOME
  std::string nvrtc;        // empty: searched
  std::string kernels_dir;  // a source tree to read kernels/ from; empty: the embedded sources
  std::string dump_dir;     // empty: FULMEN_DUMP_DIR. Gets text, PTX, log and cubin of every kernel
  int driver_version = 0;   // 0: no driver
};

struct KernelCounters {
  int64_t compiles = 0, disk_hits = 0, memory_hits = 0;
};

class KernelLibrary {
 public:
  explicit KernelLibrary(KernelOptions options);

  // The kernel, which lives as long as this object. Any thread; a kernel that two want at once is made once. With
  // may_compile = false one that is neither in memory nor on disk is refused (not_prepared). Throws compile_failed
  // with the compiler's log, the config and the text; no_device where there is no NVRTC.
  const CompiledKernel& get(const Unit& unit, const Target& target, bool may_compile = true);

  // Called after each kernel, by one thread at a time.
  using Progress = std::function<void(int done, int total, const CompiledKernel& kernel)>;
  // Makes all of them, on num_threads threads (0: one per processor). Goes on after an error and throws the first.
  void prepare(const std::vector<Unit>& units, const Target& target, int num_threads = 0,
               const Progress& progress = {});

  // What is known of a kernel without making it. sources: a digest of the files that its text reaches.
  struct Entry {
    std::string sources;
    bool cached;  // on disk
  };
  Entry look_up(const Unit& unit, const Target& target) const;

  // After this get() compiles nothing more.
  void seal() { sealed_ = true; }
  bool sealed() const { return sealed_; }

  KernelCounters counters() const { return {compiles_, disk_hits_, memory_hits_}; }
  const DiskCache& cache() const { return cache_; }
  // Opens it on first use; throws no_device.
  std::shared_ptr<const Nvrtc> nvrtc();

 private:
  struct Slot;
  Sources reached_by(const Unit& unit, const std::string& program) const;
  void build(Slot& slot, const Unit& unit, const Target& target, const std::string& program, bool may_compile);

  const KernelOptions options_;
  const Sources sources_;
  DiskCache cache_;
  std::once_flag cache_note_;

  std::mutex mutex_;  // of the two below
  std::unordered_map<std::string, std::shared_ptr<Slot>> slots_;
  std::shared_ptr<const Nvrtc> nvrtc_;

  std::atomic<bool> sealed_{false};
  std::atomic<int64_t> compiles_{0}, disk_hits_{0}, memory_hits_{0};
};

// {"nvrtc": [{"origin", "path", "version", "reason"}, ...], "cache": {"dir", "usable", "note"}}: opens no device.
std::string jit_info_json(const KernelOptions& options);

}  // namespace fulmen
