// Compiled kernels on disk. A cubin is code, so a folder or file that somebody else could have written is not used;
// docs/cache.md gives the rules and the format.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace fulmen {

struct CacheEntry {
  std::string key;      // the whole key text
  std::string version;  // of the NVRTC that made it
  std::string log;
  std::string cubin;
  bool operator==(const CacheEntry&) const = default;
};

// The bytes of an entry's file, and back; nothing where a byte is missing, changed or left over.
std::string encode(const CacheEntry& entry);
std::optional<CacheEntry> decode(std::string_view bytes);

// The option, FULMEN_CACHE_DIR, $XDG_CACHE_HOME/fulmen, $HOME/.cache/fulmen: the first that is set. Empty if none is.
std::string choose_cache_dir(const std::string& option, const std::function<std::string(const char*)>& environment);

class DiskCache {
 public:
  // Opens or makes the folder. What speaks against using it stands in note(), and the cache then stays empty.
  explicit DiskCache(std::string dir);
  ~DiskCache();
  DiskCache(const DiskCache&) = delete;
  DiskCache& operator=(const DiskCache&) = delete;

  const std::string& dir() const { return dir_; }
  bool usable() const { return fd_ >= 0; }
  const std::string& note() const { return note_; }  // why not; or empty

  // Nothing where there is no entry of this key, or only one that is damaged, another's, or open to others.
  std::optional<CacheEntry> load(const std::string& key) const;

  // Empty on success, else what failed; whatever was there before still is.
  std::string store(const CacheEntry& entry);

  // Held by one process or thread per key while it compiles, so that the others need not. Best effort: a holder that
  // sits on it for longer than `patience_ms` is passed by.
  class Lock {
   public:
    Lock(const DiskCache& cache, const std::string& key, int patience_ms);
    ~Lock();
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    bool held() const { return held_; }

   private:
    int fd_ = -1;
    int64_t at_ = 0;
    bool held_ = false;
  };

 private:
  std::string open_folder();
  void sweep() const;

  std::string dir_, note_;
  int fd_ = -1;
};

}  // namespace fulmen
