// What a compiled kernel costs, read from the compiler's own log and from the cubin.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fulmen {

struct ResourceUsage {
  int registers = 0;           // per thread
  int static_smem_bytes = 0;   // per block; dynamic shared memory comes on top
  int stack_bytes = 0;         // per thread, in local memory
  int spill_store_bytes = 0;
  int spill_load_bytes = 0;

  bool uses_local_memory() const { return stack_bytes + spill_store_bytes + spill_load_bytes > 0; }
  bool operator==(const ResourceUsage&) const = default;
};

// From the lines that --ptxas-options=-v adds.
ResourceUsage parse_usage(std::string_view log);

// What makes a shipped kernel unfit: local memory, a call to a routine of the compiler's own (64-bit division, an
// exact square root: symbols $__internal_*), a message that setmaxnreg was ignored or wgmma serialised (C7508, C7510
// to C7519). One sentence each; empty is good.
std::vector<std::string> code_faults(std::string_view log, std::string_view cubin);

}  // namespace fulmen
