// The demo's view of a running batch: a row per request, a bar of KV pages, redrawn in place.
#pragma once

#include "engine/engine.hpp"

#include <string>
#include <vector>

namespace fulmen::command {

/// The lines of one frame, each at most `width` columns. Pure, so that tests can look at it.
std::vector<std::string> draw_frame(const engine::Engine& engine, const std::vector<const engine::Request*>& requests,
                                    const std::vector<std::string>& prompts, double seconds, int width);

class LiveView {
 public:
  ~LiveView() { clear(); }
  void show(const std::vector<std::string>& frame);
  void clear() noexcept;

 private:
  size_t lines_ = 0;
};

}  // namespace fulmen::command
