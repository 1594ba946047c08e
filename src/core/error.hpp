// The one way to fail: throw Error with a status and a text that names the argument, what was expected, what was found.
// guard() at the C edge turns it into a status and keeps the text for fulmen_last_error().
#pragma once

#include <fmt/format.h>

#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "fulmen/fulmen.h"

namespace fulmen {

class Error : public std::exception {
 public:
  Error(fulmen_status status, std::string text) : status_(status), text_(std::move(text)) {}
  fulmen_status status() const { return status_; }
  const std::string& text() const { return text_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  fulmen_status status_;
  std::string text_;
};

template <class... Args>
[[noreturn]] void fail(fulmen_status status, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(status, fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
void require(bool holds, fmt::format_string<Args...> format, Args&&... args) {
  if (!holds) fail(FULMEN_INVALID_ARGUMENT, format, std::forward<Args>(args)...);
}

// The calling thread's last error; cleared when a call begins.
void set_last_error(std::string text) noexcept;
void clear_last_error() noexcept;

template <class Body>
fulmen_status guard(Body&& body) noexcept {
  clear_last_error();
  try {
    body();
    return FULMEN_OK;
  } catch (const Error& error) {
    set_last_error(error.text());
    return error.status();
  } catch (const std::bad_alloc&) {
    set_last_error("out of host memory");
    return FULMEN_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    set_last_error(std::string("internal: ") + error.what());
    return FULMEN_INTERNAL;
  } catch (...) {
    set_last_error("internal: unknown exception");
    return FULMEN_INTERNAL;
  }
}

}  // namespace fulmen
