#include "core/log.hpp"

#include <atomic>
#include <cstdio>
#include <mutex>

namespace fulmen {
namespace {
struct Sink {
  fulmen_log_fn callback = nullptr;
  void* user = nullptr;
};
std::mutex sink_mutex;
Sink sink;
std::atomic<int> threshold{FULMEN_LOG_WARNING};
}  // namespace

bool log_enabled(fulmen_log_level level) noexcept { return level <= threshold.load(std::memory_order_relaxed); }

void log_text(fulmen_log_level level, const std::string& text) noexcept {
  Sink current;
  {
    std::lock_guard<std::mutex> lock(sink_mutex);
    current = sink;
  }
  if (current.callback != nullptr) return current.callback(current.user, level, text.c_str());
  static const char* const kNames[] = {"error", "warning", "info", "debug"};
  std::fprintf(stderr, "fulmen: %s: %s\n", kNames[level], text.c_str());
}

}  // namespace fulmen

extern "C" void fulmen_set_log(fulmen_log_fn callback, void* user, fulmen_log_level level) {
  std::lock_guard<std::mutex> lock(fulmen::sink_mutex);
  fulmen::sink = {callback, user};
  fulmen::threshold.store(level);
}
