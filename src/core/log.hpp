// Logging goes to the process's callback, or to standard error from warnings up.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

#include "fulmen/fulmen.h"

namespace fulmen {

bool log_enabled(fulmen_log_level level) noexcept;
void log_text(fulmen_log_level level, const std::string& text) noexcept;

template <class... Args>
void log(fulmen_log_level level, fmt::format_string<Args...> format, Args&&... args) {
  if (log_enabled(level)) log_text(level, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace fulmen
