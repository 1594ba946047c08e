// NVRTC, NVIDIA's run-time compiler: found and opened at run time, never linked.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "jit/sources.hpp"

namespace fulmen {

struct NvrtcCandidate {
  std::string origin;   // "option", "FULMEN_NVRTC", "beside libfulmen", ...
  std::string path;     // absolute; a bare name where the loader was asked and found nothing
  std::string version;  // "13.0"; empty where it could not be opened
  std::string reason;   // why it was taken or passed over
};

struct NvrtcSearch {
  std::string option;      // an absolute file; the only candidate when not empty
  int driver_version = 0;  // as cuDriverGetVersion gives it (12040); 0: no driver, any NVRTC will do
};

class Nvrtc {
 public:
  // Looks where docs/cache.md says and opens the first library that fits. Throws no_device with the candidates and
  // their reasons where none does. The library stays open until the process ends.
  static std::shared_ptr<const Nvrtc> open(const NvrtcSearch& search);

  // Every candidate in order, opened for its version; at most one has the reason "used".
  static std::vector<NvrtcCandidate> candidates(const NvrtcSearch& search);

  const std::string& path() const { return path_; }
  int major() const { return major_; }
  int minor() const { return minor_; }
  std::string version() const;

  // May compile for this real architecture.
  bool supports(const std::string& arch) const;

  struct Result {
    bool ok = false;
    std::string log;
    std::string cubin;
    std::string ptx;
  };
  // Compiles `text`, which may include `headers` and nothing else. Any thread may call it.
  Result compile(const std::string& text, const Sources& headers, const std::vector<std::string>& options) const;

  ~Nvrtc();

 private:
  struct Functions;
  Nvrtc() = default;
  static std::shared_ptr<const Nvrtc> search(const NvrtcSearch& search, std::vector<NvrtcCandidate>& seen, bool all);
  bool bind(void* handle, NvrtcCandidate& candidate, int driver_version);

  std::unique_ptr<const Functions> functions_;
  std::string path_;
  int major_ = 0, minor_ = 0;
};

}  // namespace fulmen
