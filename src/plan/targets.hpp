// What a kernel is made for: the architecture that names the machine code, and the machine's sizes that tile tables
// and grids are computed from. Either read from a device or taken by name from the table, which needs no GPU.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fulmen {

struct Target {
  std::string name;           // what the user says: "sm_90a"
  std::string arch;           // what the compiler is told: real, so that it makes a cubin
  int major = 0, minor = 0;   // compute capability
  int num_sms = 0;
  int smem_per_block = 0;     // bytes one block may ask for (opt-in), static and dynamic together
  int smem_per_sm = 0;        // bytes; each resident block costs 1024 more than it asks for
  int max_threads_per_sm = 0;
  int64_t l2_bytes = 0;
  double read_gbps = 0;       // published peak of device memory, 1e9 bytes/s
  double bf16_tflops = 0;     // published peak of the matrix units, dense, fp32 accumulation

  bool operator==(const Target&) const = default;

  // Kernels come in two classes: "sm80" runs on everything since Ampere, "sm90a" on Hopper only.
  bool runs_sm90a() const { return arch == "sm_90a"; }
};

// The machines that have a name, smallest capability first.
const std::vector<Target>& named_targets();

// Throws invalid_argument listing the known names.
const Target& target_by_name(std::string_view name);

// The architecture to compile for on a device of this capability. Hopper gets its specific features ("sm_90a").
std::string arch_of(int major, int minor);

}  // namespace fulmen
