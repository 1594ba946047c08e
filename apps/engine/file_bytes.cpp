#include "engine/file_bytes.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "engine/input_error.hpp"

namespace fulmen::engine {
namespace {

[[noreturn]] void fail(const std::string& path, std::string_view doing) {
  throw InputError(fmt::format("{}: {}: {}", path, doing, std::strerror(errno)));
}

/// Closes the descriptor unless it is released.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  int release() { return std::exchange(fd, -1); }
};

size_t regular_size(int fd, const std::string& path) {
  struct stat info;
  if (::fstat(fd, &info) != 0) fail(path, "can't read its size");
  if (!S_ISREG(info.st_mode)) throw InputError(fmt::format("{}: expected a regular file", path));
  return static_cast<size_t>(info.st_size);
}

int open_file(const std::string& path) {
  // O_NONBLOCK: opening a pipe by mistake must end in an error, not in a wait.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail(path, "can't open");
  return fd;
}

}  // namespace

FileBytes FileBytes::map(const std::string& path) {
  Descriptor file{open_file(path)};
  const size_t size = regular_size(file.fd, path);
  FileBytes out;
  if (size > 0) {
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
    if (address == MAP_FAILED) fail(path, "can't map");
    out.bytes_ = {static_cast<const std::byte*>(address), size};
  }
  out.fd_ = file.release();
  out.check_size(path);
  return out;
}

FileBytes FileBytes::read(const std::string& path) {
  Descriptor file{open_file(path)};
  const size_t size = regular_size(file.fd, path);
  std::vector<std::byte> bytes;
  try {
    bytes.resize(size);
  } catch (const std::bad_alloc&) {
    throw InputError(fmt::format("{}: no memory for {} bytes; map the file instead", path, size));
  }
  for (size_t done = 0; done < size;) {
    const ssize_t got = ::pread(file.fd, bytes.data() + done, size - done, static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path, "can't read");
    if (got == 0) {
      throw InputError(fmt::format("{}: expected {} bytes, the file ended after {}", path, size, done));
    }
    done += static_cast<size_t>(got);
  }
  return adopt(std::move(bytes));
}

FileBytes FileBytes::adopt(std::vector<std::byte> bytes) {
  FileBytes out;
  out.owned_ = std::move(bytes);
  out.bytes_ = out.owned_;
  return out;
}

void FileBytes::check_size(const std::string& path) const {
  if (fd_ < 0) return;
  const size_t now = regular_size(fd_, path);
  if (now != bytes_.size()) {
    throw InputError(
        fmt::format("{}: changed while open: expected {} bytes, found {}", path, bytes_.size(), now));
  }
}

FileBytes::FileBytes(FileBytes&& other) noexcept { *this = std::move(other); }

FileBytes& FileBytes::operator=(FileBytes&& other) noexcept {
  if (this != &other) {
    release();
    bytes_ = std::exchange(other.bytes_, {});
    owned_ = std::move(other.owned_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

FileBytes::~FileBytes() { release(); }

void FileBytes::release() {
  if (fd_ < 0) return;
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  ::close(fd_);
  fd_ = -1;
  bytes_ = {};
}

}  // namespace fulmen::engine
