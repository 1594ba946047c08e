// Versioned structs: an older caller passes fewer bytes (the rest are defaults), a newer one may pass more only if
// the bytes that this library doesn't know are zero.
#pragma once

#include <cstring>

#include "core/error.hpp"

namespace fulmen {

template <class T>
T read_args(const char* op, const char* name, const T* given) {
  require(given != nullptr, "{}: {}: expected a struct, found NULL", op, name);
  size_t size = 0;
  std::memcpy(&size, given, sizeof size);
  require(size >= sizeof(size_t), "{}: {}: expected struct_size to be set (FULMEN_INIT does it), found {}", op, name, size);
  // Bytes up to struct_size are read: what no version will ever have is a size that was never set.
  constexpr size_t kMost = 4 * sizeof(T) + 4096;
  require(size <= kMost, "{}: {}: expected struct_size of at most {}, found {}", op, name, kMost, size);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof(T); i < size; ++i) {
    require(bytes[i] == 0, "{}: {}: byte {} is set, but this library (version {}) knows only {} bytes of the struct", op,
            name, i, fulmen_version(), sizeof(T));
  }
  T args{};
  std::memcpy(static_cast<void*>(&args), given, size < sizeof(T) ? size : sizeof(T));
  args.struct_size = sizeof(T);
  return args;
}

}  // namespace fulmen
