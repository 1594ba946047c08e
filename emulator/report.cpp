// Faults as text: where, who, and the seed that repeats it.
#include <fcntl.h>
#include <fmt/format.h>
#include <link.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cstdlib>
#include <filesystem>
#include <mutex>

#include "emulator/runtime.hpp"

extern char** environ;

namespace fulmen::emulator {

const char* fault_name(FaultKind kind) {
  switch (kind) {
    case FaultKind::race: return "race";
    case FaultKind::out_of_bounds: return "out of bounds";
    case FaultKind::misaligned: return "misaligned";
    case FaultKind::uninitialised: return "uninitialised";
    case FaultKind::divergent: return "divergent";
    case FaultKind::deadlock: return "deadlock";
    case FaultKind::pending_copy: return "pending copy";
    case FaultKind::in_flight_at_exit: return "in flight at exit";
    case FaultKind::read_only: return "read only";
    case FaultKind::limit: return "limit";
    case FaultKind::before_wait: return "before wait";
    case FaultKind::trap: return "trap";
  }
  return "?";
}

bool Report::has(FaultKind kind) const {
  for (const Fault& f : faults) {
    if (f.kind == kind) return true;
  }
  return false;
}

std::string Report::text() const {
  if (clean()) return fmt::format("kernel {}, seed {}: clean", kernel, seed);
  std::string all;
  for (const Fault& f : faults) all += f.text + "\n";
  return all;
}

namespace {

uintptr_t program_base() {
  static const uintptr_t base = [] {
    uintptr_t first = 0;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* to) {
          *static_cast<uintptr_t*>(to) = info->dlpi_addr;
          return 1;  // the program itself comes first
        },
        &first);
    return first;
  }();
  return base;
}

// binutils' addr2line, started at the first question and kept: it reads the debug information once.
class LineFinder {
 public:
  std::string ask(uintptr_t pc) {
    if (owner_ != getpid()) start();  // a forked child needs one of its own
    if (out_ < 0) return fmt::format("+{:#x}", pc - program_base());
    // The call lies before the address it returns to. The second question's answer marks the end of the first's.
    const std::string question = fmt::format("{:x}\n0\n", pc - program_base() - 1);
    if (write(in_, question.data(), question.size()) < 0) return "?";
    std::vector<std::string> lines;
    for (;;) {
      std::string line = read_line();
      if (line.empty()) break;
      if (line.rfind("0x", 0) == 0 && !lines.empty()) break;
      lines.push_back(std::move(line));
    }
    read_line();  // function and line of address 0
    read_line();
    std::string text;
    for (size_t i = 1; i + 1 < lines.size(); i += 2) {
      std::string file = lines[i + 1];
      if (const size_t note = file.find(" (discriminator"); note != std::string::npos) file.resize(note);
      file = std::filesystem::path(file).lexically_normal().string();
      if (file.rfind(FULMEN_SOURCE_DIR "/", 0) == 0) {
        file.erase(0, sizeof(FULMEN_SOURCE_DIR));
      } else if (file.rfind("/usr/", 0) == 0) {
        continue;
      }
      if (file.rfind("emulator/", 0) == 0) continue;  // the emulator's own door says nothing
      if (!text.empty()) text += " <- ";
      text += fmt::format("{} ({})", file, lines[i].substr(0, lines[i].find('(')));
    }
    return text.empty() ? fmt::format("+{:#x}", pc - program_base()) : text;
  }

 private:
  void start() {
    owner_ = getpid();
    in_ = out_ = -1;
    buffer_.clear();
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0) return;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to[0], 0);
    posix_spawn_file_actions_adddup2(&actions, from[1], 1);
    char program[4096] = {};
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) return;
    char tool[] = "addr2line", flags[] = "-Cfia", exe[] = "-e";
    char* arguments[] = {tool, flags, exe, program, nullptr};
    pid_t child;
    const int failed = posix_spawnp(&child, tool, &actions, nullptr, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(to[0]);
    close(from[1]);
    if (failed != 0) {
      close(to[1]);
      close(from[0]);
      return;
    }
    in_ = to[1];
    out_ = from[0];
  }

  std::string read_line() {
    for (;;) {
      const size_t end = buffer_.find('\n');
      if (end != std::string::npos) {
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return line;
      }
      char chunk[4096];
      const ssize_t n = read(out_, chunk, sizeof chunk);
      if (n <= 0) return "";
      buffer_.append(chunk, static_cast<size_t>(n));
    }
  }

  pid_t owner_ = 0;
  int in_ = -1, out_ = -1;
  std::string buffer_;
};

}  // namespace

std::string line_of(uintptr_t pc) {
  static std::unordered_map<uintptr_t, std::string> known;
  static LineFinder finder;
  if (pc == 0) return "?";
  auto [it, is_new] = known.try_emplace(pc);
  if (is_new) it->second = finder.ask(pc);
  return it->second;
}

std::string where(uintptr_t pc) { return mutated() ? "" : line_of(pc); }

uint32_t pack_pc(uintptr_t pc) { return static_cast<uint32_t>(pc - program_base()); }
uintptr_t unpack_pc(uint32_t pc) { return pc + program_base(); }

std::string describe_who(uint32_t who) {
  const uint32_t block = who >> 10, i = who & 1023u;
  const Index3 b = grid->block_size, g = grid->size;
  return fmt::format("thread ({},{},{}) of block ({},{},{}) [warp {} lane {}]", i % b.x, i / b.x % b.y, i / (b.x * b.y), block % g.x,
                     block / g.x % g.y, block / (g.x * g.y), i / 32, i % 32);
}
std::string describe_thread(const Thread& thread) { return describe_who(thread.who); }

bool same_place(uintptr_t a, uintptr_t b) { return a == b || line_of(a) == line_of(b); }

std::string lanes_text(uint32_t lanes) { return fmt::format("lanes {:#010x}", lanes); }

std::string deadlock_text(bool& divergent) {
  std::string text = "no thread can run\n";
  divergent = false;
  int lines = 0;
  for (const auto& block : grid->resident) {
    for (int id = 0; id < 16; ++id) {
      const Barrier& barrier = block->barriers[id];
      if (barrier.pc == 0) continue;
      uint32_t arrived = 0;
      for (const Warp& warp : block->warps) arrived += static_cast<uint32_t>(std::popcount(barrier.arrived[warp.index]));
      text += fmt::format("    block {}: barrier {}: {} of {} threads have arrived\n", block->number, id, arrived,
                          barrier.whole_block ? block->live_threads : barrier.expected);
    }
    for (const Warp& warp : block->warps) {
      // Lanes grouped by what they wait for.
      std::map<std::pair<std::string, uintptr_t>, uint32_t> groups;
      for (uint32_t lane = 0; lane < 32; ++lane) {
        if ((warp.live >> lane & 1u) == 0) continue;
        const Thread& t = block->threads[warp.index * 32 + lane];
        std::string what = t.waiting_for;
        if (t.waiting == Waiting::barrier) what += fmt::format(" (barrier {})", t.waiting_barrier);
        groups[{what, t.waiting_pc}] |= 1u << lane;
      }
      if (groups.size() > 1) divergent = true;
      for (const auto& [what, lanes] : groups) {
        if (++lines > 40) continue;
        text += fmt::format("    block {} warp {} {} wait at {}\n        at {}\n", block->number, warp.index, lanes_text(lanes), what.first, where(what.second));
      }
    }
  }
  if (text.back() == '\n') text.pop_back();
  return text;
}

void add_fault(FaultKind kind, const std::string& text) {
  grid->report.faults.push_back({kind, fmt::format("{}: {}\n  kernel {}, seed {}", fault_name(kind), text, grid->launch->name, grid->launch->seed)});
}

void fault(FaultKind kind, const std::string& what, uintptr_t pc) {
  current = nullptr;
  std::string text = what;
  if (pc != 0) text += fmt::format("\n    at {}", where(pc));
  if (running != nullptr) text += fmt::format("\n  by {}", describe_thread(*running));
  add_fault(kind, text);
  stop_launch();
}

}  // namespace fulmen::emulator
