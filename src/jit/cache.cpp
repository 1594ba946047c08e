#include "jit/cache.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "jit/key.hpp"

namespace fulmen {
namespace {

constexpr std::string_view kMagic = "fulmen kernel 1\n";
constexpr size_t kChecksumBytes = sizeof(XXH128_canonical_t);
constexpr off_t kMaxEntryBytes = 256 << 20;  // no kernel comes near; a file that claims more is not one of ours
constexpr int kTempLifetimeSeconds = 3600;   // what a killed process left behind is older

std::string checksum(std::string_view bytes) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
  return {reinterpret_cast<const char*>(canonical.digest), sizeof(canonical.digest)};
}

// Nobody but the user and root can have written it.
std::string distrust(const struct stat& status) {
  if (status.st_uid != geteuid() && status.st_uid != 0)
    return fmt::format("it belongs to user {}, expected {} or root", status.st_uid, geteuid());
  if (status.st_mode & (S_IWGRP | S_IWOTH))
    return fmt::format("others may write to it (mode {:04o})", status.st_mode & 07777);
  return {};
}

int64_t milliseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1000} + now.tv_nsec / 1'000'000;
}

struct File {
  int fd;
  explicit File(int fd) : fd(fd) {}
  ~File() {
    if (fd >= 0) close(fd);
  }
  File(const File&) = delete;
};

bool read_all(int fd, char* to, size_t bytes) {
  while (bytes > 0) {
    const ssize_t n = read(fd, to, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    to += n, bytes -= n;
  }
  return true;
}

bool write_all(int fd, const char* from, size_t bytes) {
  while (bytes > 0) {
    const ssize_t n = write(fd, from, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    from += n, bytes -= n;
  }
  return true;
}

// Makes the folder and those above it. They are the user's alone; what exists keeps its mode.
void make_folders(const std::string& path) {
  for (size_t at = path.find('/', 1); at != path.npos; at = path.find('/', at + 1))
    mkdir(path.substr(0, at).c_str(), 0700);
  mkdir(path.c_str(), 0700);
}

std::string entry_file(const std::string& key) { return key_name(key) + ".kernel"; }

}  // namespace

std::string encode(const CacheEntry& entry) {
  std::string body;
  for (const std::string* section : {&entry.key, &entry.version, &entry.log, &entry.cubin}) {
    const uint64_t size = section->size();
    body.append(reinterpret_cast<const char*>(&size), sizeof size).append(*section);
  }
  return std::string(kMagic) + checksum(body) + body;
}

std::optional<CacheEntry> decode(std::string_view bytes) {
  if (!bytes.starts_with(kMagic) || bytes.size() < kMagic.size() + kChecksumBytes) return {};
  std::string_view body = bytes.substr(kMagic.size() + kChecksumBytes);
  if (bytes.substr(kMagic.size(), kChecksumBytes) != checksum(body)) return {};
  CacheEntry entry;
  for (std::string* section : {&entry.key, &entry.version, &entry.log, &entry.cubin}) {
    uint64_t size = 0;
    if (body.size() < sizeof size) return {};
    std::memcpy(&size, body.data(), sizeof size);
    body.remove_prefix(sizeof size);
    if (size > body.size()) return {};
    *section = body.substr(0, size);
    body.remove_prefix(size);
  }
  if (!body.empty()) return {};
  return entry;
}

std::string choose_cache_dir(const std::string& option, const std::function<std::string(const char*)>& environment) {
  if (!option.empty()) return option;
  if (std::string dir = environment("FULMEN_CACHE_DIR"); !dir.empty()) return dir;
  if (std::string home = environment("XDG_CACHE_HOME"); home.starts_with('/')) return home + "/fulmen";
  if (std::string home = environment("HOME"); home.starts_with('/')) return home + "/.cache/fulmen";
  return {};
}

DiskCache::DiskCache(std::string dir) : dir_(std::move(dir)) {
  while (dir_.size() > 1 && dir_.ends_with('/')) dir_.pop_back();  // a slash at the end would follow a symbolic link
  const std::string why = open_folder();
  if (why.empty()) {
    sweep();
    return;
  }
  note_ = fmt::format("kernel cache {} is not used, compiled kernels stay in memory only: {}", dir_, why);
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

// Returns what speaks against using the folder.
std::string DiskCache::open_folder() {
  if (!dir_.starts_with('/')) return dir_.empty() ? "no directory is set" : "not an absolute path";
  make_folders(dir_);
  struct stat status;
  if (lstat(dir_.c_str(), &status) == 0 && S_ISLNK(status.st_mode)) return "it is a symbolic link";
  fd_ = open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd_ < 0 || fstat(fd_, &status) != 0) return std::strerror(errno);
  return distrust(status);
}

DiskCache::~DiskCache() {
  if (fd_ >= 0) close(fd_);
}

// Removes what processes that died while writing left behind.
void DiskCache::sweep() const {
  const int reopened = openat(fd_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (reopened < 0) return;
  DIR* folder = fdopendir(reopened);  // owns it from now on
  if (!folder) {
    close(reopened);
    return;
  }
  while (const dirent* item = readdir(folder)) {
    struct stat status;
    if (std::string_view(item->d_name).ends_with(".tmp") &&
        fstatat(fd_, item->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
        status.st_mtime + kTempLifetimeSeconds < time(nullptr))
      unlinkat(fd_, item->d_name, 0);
  }
  closedir(folder);
}

std::optional<CacheEntry> DiskCache::load(const std::string& key) const {
  if (!usable()) return {};
  // Not blocking: a fifo in an entry's place must not hang us.
  const File file(openat(fd_, entry_file(key).c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
  struct stat status;
  if (file.fd < 0 || fstat(file.fd, &status) != 0 || !S_ISREG(status.st_mode)) return {};
  if (!distrust(status).empty() || status.st_size > kMaxEntryBytes) return {};
  std::string bytes(status.st_size, '\0');
  if (!read_all(file.fd, bytes.data(), bytes.size())) return {};
  std::optional<CacheEntry> entry = decode(bytes);
  if (entry && entry->key != key) return {};
  return entry;
}

std::string DiskCache::store(const CacheEntry& entry) {
  if (!usable()) return note_;
  static std::atomic<int> counter{0};  // apart threads; the clock, processes of one number in two containers
  const std::string name = entry_file(entry.key);
  const std::string temp = fmt::format("{}.{}.{}.{}.tmp", name, getpid(), counter++, milliseconds());
  const auto failed = [&](const char* what) {
    const int error = errno;
    unlinkat(fd_, temp.c_str(), 0);
    return fmt::format("kernel cache {}: cannot {} {}: {}", dir_, what, name, std::strerror(error));
  };
  const File file(openat(fd_, temp.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (file.fd < 0) return fmt::format("kernel cache {}: cannot create {}: {}", dir_, temp, std::strerror(errno));
  const std::string bytes = encode(entry);
  if (!write_all(file.fd, bytes.data(), bytes.size())) return failed("write");
  if (fsync(file.fd) != 0) return failed("write");
  if (renameat(fd_, temp.c_str(), fd_, name.c_str()) != 0) return failed("rename");
  fsync(fd_);
  return {};
}

// One file for all keys: a byte of it, at a place made from the key, is what is locked. The lock belongs to this open
// file, so that it works between threads too, and the kernel drops it when the process dies.
DiskCache::Lock::Lock(const DiskCache& cache, const std::string& key, int patience_ms) {
  if (!cache.usable()) return;
  fd_ = openat(cache.fd_, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd_ < 0) return;
  at_ = static_cast<int64_t>(XXH3_64bits(key.data(), key.size()) >> 2);
  struct flock range = {};
  range.l_type = F_WRLCK, range.l_whence = SEEK_SET, range.l_start = at_, range.l_len = 1;
  for (const int64_t deadline = milliseconds() + patience_ms;;) {
    held_ = fcntl(fd_, F_OFD_SETLK, &range) == 0;
    if (held_ || (errno != EAGAIN && errno != EACCES) || milliseconds() >= deadline) return;
    const timespec step = {0, 5'000'000};
    nanosleep(&step, nullptr);
  }
}

DiskCache::Lock::~Lock() {
  if (fd_ < 0) return;
  if (held_) {  // a child forked meanwhile shares the open file: closing ours alone would keep the lock
    struct flock range = {};
    range.l_type = F_UNLCK, range.l_whence = SEEK_SET, range.l_start = at_, range.l_len = 1;
    fcntl(fd_, F_OFD_SETLK, &range);
  }
  close(fd_);
}

}  // namespace fulmen
