#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace fulmen::engine {

/// The bytes of a regular file, mapped read-only or read into memory. Move-only; the bytes stay where they
/// are.
class FileBytes {
 public:
  static FileBytes map(const std::string& path);
  static FileBytes read(const std::string& path);
  static FileBytes adopt(std::vector<std::byte> bytes);

  FileBytes(FileBytes&& other) noexcept;
  FileBytes& operator=(FileBytes&& other) noexcept;
  ~FileBytes();

  std::span<const std::byte> bytes() const { return bytes_; }
  /// Throws InputError when a mapped file no longer has the size it was opened with.
  void check_size(const std::string& path) const;

 private:
  FileBytes() = default;
  void release();

  std::span<const std::byte> bytes_;
  std::vector<std::byte> owned_;
  int fd_ = -1;  // kept open while mapped, for check_size
};

}  // namespace fulmen::engine
