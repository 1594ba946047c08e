#include "plan/targets.hpp"

#include "core/error.hpp"

namespace fulmen {

// Sizes: CUDA C programming guide, "Technical Specifications per Compute Capability". SM counts and peaks: NVIDIA's
// data sheets of the GPU named on the line, the one most served from in its class.
const std::vector<Target>& named_targets() {
  constexpr int kKiB = 1024;
  constexpr int64_t kMiB = 1024 * 1024;
  static const std::vector<Target> targets = {
      //  name      arch   capability SMs   per block    per SM    threads       L2    GB/s   TFLOPS
      {"sm_80", "sm_80", 8, 0, 108, 163 * kKiB, 164 * kKiB, 2048, 40 * kMiB, 2039, 312},     // A100 80 GB SXM
      {"sm_86", "sm_86", 8, 6, 84, 99 * kKiB, 100 * kKiB, 1536, 6 * kMiB, 696, 149.7},       // A40
      {"sm_89", "sm_89", 8, 9, 142, 99 * kKiB, 100 * kKiB, 1536, 96 * kMiB, 864, 362},       // L40S
      {"sm_90", "sm_90", 9, 0, 132, 227 * kKiB, 228 * kKiB, 2048, 50 * kMiB, 3350, 989},     // H100 SXM, portable code
      {"sm_90a", "sm_90a", 9, 0, 132, 227 * kKiB, 228 * kKiB, 2048, 50 * kMiB, 3350, 989},   // H100 SXM
      {"sm_100", "sm_100", 10, 0, 148, 227 * kKiB, 228 * kKiB, 2048, 126 * kMiB, 8000, 2250}, // B200
      {"sm_120", "sm_120", 12, 0, 170, 99 * kKiB, 100 * kKiB, 1536, 96 * kMiB, 1792, 209.5},  // RTX 5090
  };
  return targets;
}

const Target& target_by_name(std::string_view name) {
  std::string known;
  for (const Target& target : named_targets()) {
    if (target.name == name) return target;
    known += (known.empty() ? "" : ", ") + target.name;
  }
  fail(FULMEN_INVALID_ARGUMENT, "target: expected one of {}; found \"{}\"", known, name);
}

std::string arch_of(int major, int minor) {
  return fmt::format("sm_{}{}{}", major, minor, major == 9 && minor == 0 ? "a" : "");
}

}  // namespace fulmen
