// May a kernel read and write `bytes` at a time here?
#pragma once

#include <cstdint>
#include <initializer_list>

namespace fulmen {

// The data and every stride (or extent) in elements of element_bytes are multiples of `bytes`. Absent data is aligned.
inline bool is_aligned(const void* data, std::initializer_list<int64_t> elements, int64_t element_bytes, int64_t bytes) {
  if (data == nullptr) return true;
  bool ok = reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0;
  for (const int64_t count : elements) ok = ok && count * element_bytes % bytes == 0;
  return ok;
}

}  // namespace fulmen
