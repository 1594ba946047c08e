// Text that crosses the C ABI: the caller frees it with fulmen_string_free.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

namespace fulmen {

inline char* to_c_text(const std::string& text) {
  char* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy == nullptr) throw std::bad_alloc();
  std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

}  // namespace fulmen
