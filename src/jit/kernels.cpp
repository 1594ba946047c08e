#include "jit/kernels.hpp"

#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include <algorithm>
#include <fstream>
#include <thread>

#include "core/error.hpp"
#include "core/log.hpp"
#include "jit/key.hpp"

namespace fulmen {
namespace {

constexpr int kLockPatienceMs = 3000;

std::string environment(const char* name) {
  const char* value = secure_getenv(name);
  return value ? value : "";
}

double seconds_of(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec + now.tv_nsec * 1e-9;
}

KernelOptions with_environment(KernelOptions options) {
  options.cache_dir = choose_cache_dir(options.cache_dir, environment);
  if (options.dump_dir.empty()) options.dump_dir = environment("FULMEN_DUMP_DIR");
  return options;
}

// Writes DIR/kernel-key.SUFFIX and returns its path, empty where it can't.
std::string dump(const std::string& dir, const CompiledKernel& kernel, const char* suffix, const std::string& text) {
  if (dir.empty()) return {};
  mkdir(dir.c_str(), 0700);
  const std::string path = fmt::format("{}/{}-{}.{}", dir, kernel.kernel, kernel.name.substr(0, 12), suffix);
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  return file ? path : std::string();
}

}  // namespace

// A kernel in memory, or on its way there. What `kernel` and `error` hold is written before `state` leaves kBuilding.
struct KernelLibrary::Slot {
  enum State { kBuilding, kReady, kFailed };
  std::atomic<int> state{kBuilding};
  CompiledKernel kernel;
  std::exception_ptr error;
};

KernelLibrary::KernelLibrary(KernelOptions options)
    : options_(with_environment(std::move(options))),
      sources_(options_.kernels_dir.empty() ? embedded_sources() : read_sources(options_.kernels_dir)),
      cache_(options_.cache_dir) {}

std::shared_ptr<const Nvrtc> KernelLibrary::nvrtc() {
  const std::lock_guard lock(mutex_);
  if (!nvrtc_) nvrtc_ = Nvrtc::open({options_.nvrtc, options_.driver_version});
  return nvrtc_;
}

const CompiledKernel& KernelLibrary::get(const Unit& unit, const Target& target, bool may_compile) {
  const std::string program = program_text(unit);
  // The sources don't change in this object's life, so program and target tell two kernels apart here.
  const std::string id = target.arch + '\n' + program + unit.user_source;
  std::shared_ptr<Slot> slot;
  bool mine = false;
  {
    const std::lock_guard lock(mutex_);
    std::shared_ptr<Slot>& place = slots_[id];
    mine = !place;
    if (mine) place = std::make_shared<Slot>();
    slot = place;
  }
  if (!mine) {
    slot->state.wait(Slot::kBuilding);
    if (slot->state == Slot::kFailed) std::rethrow_exception(slot->error);
    ++memory_hits_;
    return slot->kernel;
  }
  try {
    build(*slot, unit, target, program, may_compile && !sealed_);
    slot->state = Slot::kReady;
  } catch (...) {
    slot->error = std::current_exception();
    {
      const std::lock_guard lock(mutex_);  // whoever waits gets this error, whoever comes later tries again
      slots_.erase(id);
    }
    slot->state = Slot::kFailed;
  }
  slot->state.notify_all();
  if (slot->error) std::rethrow_exception(slot->error);
  return slot->kernel;
}

Sources KernelLibrary::reached_by(const Unit& unit, const std::string& program) const {
  if (unit.user_source.empty()) return reached_sources(program, sources_);
  Sources all = sources_;
  all["user/variant.hpp"] = unit.user_source;
  return reached_sources(program, all);
}

KernelLibrary::Entry KernelLibrary::look_up(const Unit& unit, const Target& target) const {
  constexpr size_t kDigits = 16;
  const std::string program = program_text(unit);
  const Sources sources = reached_by(unit, program);
  return {key_name(key_text("", sources, {})).substr(0, kDigits),
          cache_.load(key_text(program, sources, compile_options(target))).has_value()};
}

void KernelLibrary::build(Slot& slot, const Unit& unit, const Target& target, const std::string& program,
                          bool may_compile) {
  const double start = seconds_of(CLOCK_MONOTONIC), cpu_start = seconds_of(CLOCK_THREAD_CPUTIME_ID);
  const Sources sources = reached_by(unit, program);
  const std::vector<std::string> options = compile_options(target);
  const std::string key = key_text(program, sources, options);

  CompiledKernel& kernel = slot.kernel;
  kernel.kernel = unit.kernel;
  kernel.name = key_name(key);
  kernel.arch = target.arch;
  kernel.num_threads = unit.num_threads;
  kernel.smem_bytes = unit.smem_bytes;
  const auto finish = [&](const CacheEntry& entry, const std::string& ptx, bool from_disk) {
    kernel.cubin = entry.cubin, kernel.log = entry.log, kernel.version = entry.version;
    kernel.usage = parse_usage(entry.log);
    kernel.from_disk = from_disk;
    kernel.seconds = seconds_of(CLOCK_MONOTONIC) - start;
    kernel.cpu_seconds = seconds_of(CLOCK_THREAD_CPUTIME_ID) - cpu_start;
    ++(from_disk ? disk_hits_ : compiles_);
    dump(options_.dump_dir, kernel, "cu", program);
    dump(options_.dump_dir, kernel, "log", entry.log);
    dump(options_.dump_dir, kernel, "cubin", entry.cubin);
    if (!ptx.empty()) dump(options_.dump_dir, kernel, "ptx", ptx);
  };

  if (const auto entry = cache_.load(key)) return finish(*entry, "", true);
  if (!may_compile)
    fail(FULMEN_NOT_PREPARED,
         "kernel {} is not prepared: for {} it would have to be compiled, which seal or a capture forbids; call "
         "fulmen_prepare, or the op once, before ({})",
         unit.kernel, target.arch, unit.config_json);

  const auto nvrtc = this->nvrtc();
  if (!nvrtc->supports(target.arch))
    fail(FULMEN_COMPILE_FAILED, "NVRTC {} ({}) does not know {}", nvrtc->version(), nvrtc->path(), target.arch);
  const DiskCache::Lock lock(cache_, key, kLockPatienceMs);
  if (const auto entry = cache_.load(key)) return finish(*entry, "", true);  // made while we waited

  const Nvrtc::Result result = nvrtc->compile(program, sources, options);
  if (!result.ok) {
    const std::string dir = !options_.dump_dir.empty() ? options_.dump_dir
                            : cache_.usable()          ? cache_.dir() + "/failed"
                                                       : "";
    const std::string path = dump(dir, kernel, "cu", program);
    fail(FULMEN_COMPILE_FAILED, "kernel {} for {} does not compile with NVRTC {}\nconfig: {}\ntext: {}\n{}{}",
         unit.kernel, target.arch, nvrtc->version(), unit.config_json, path.empty() ? "(not written)" : path, program,
         result.log);
  }
  const CacheEntry entry{key, nvrtc->version(), result.log, result.cubin};
  const std::string note = cache_.store(entry);
  if (!note.empty()) std::call_once(cache_note_, [&] { log(FULMEN_LOG_WARNING, "{}", note); });
  finish(entry, result.ptx, false);
  log(FULMEN_LOG_INFO, "compiled {} for {} in {:.2f} s {}", unit.kernel, target.arch, kernel.seconds, unit.config_json);
}

void KernelLibrary::prepare(const std::vector<Unit>& units, const Target& target, int num_threads,
                            const Progress& progress) {
  const int total = static_cast<int>(units.size());
  if (num_threads <= 0) num_threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  std::atomic<int> next{0};
  std::mutex mutex;  // of the three below
  int done = 0;
  std::exception_ptr error;
  const auto work = [&] {
    for (int i = next++; i < total; i = next++) {
      try {
        const CompiledKernel& kernel = get(units[i], target);
        const std::lock_guard lock(mutex);
        ++done;
        if (progress) progress(done, total, kernel);
      } catch (...) {
        const std::lock_guard lock(mutex);
        ++done;
        if (!error) error = std::current_exception();
      }
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < std::min(num_threads, total); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const unsigned char c : text) {
    if (c == '"' || c == '\\') out += '\\', out += static_cast<char>(c);
    else if (c < 0x20) out += fmt::format("\\u{:04x}", c);
    else out += static_cast<char>(c);
  }
  return out + '"';
}

}  // namespace

std::string jit_info_json(const KernelOptions& given) {
  const KernelOptions options = with_environment(given);
  std::string text = "{\"nvrtc\": [";
  const char* separator = "";
  for (const NvrtcCandidate& c : Nvrtc::candidates({options.nvrtc, options.driver_version})) {
    text += fmt::format("{}{{\"origin\": {}, \"path\": {}, \"version\": {}, \"reason\": {}}}", separator,
                        quoted(c.origin), quoted(c.path), quoted(c.version), quoted(c.reason));
    separator = ", ";
  }
  const DiskCache cache(options.cache_dir);
  return text + fmt::format("], \"cache\": {{\"dir\": {}, \"usable\": {}, \"note\": {}}}}}", quoted(cache.dir()),
                            cache.usable(), quoted(cache.note()));
}

}  // namespace fulmen
