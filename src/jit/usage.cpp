#include "jit/usage.hpp"

#include <fmt/format.h>

#include <cctype>

namespace fulmen {
namespace {

// The number that stands right before `words`, 0 where they don't occur.
int number_before(std::string_view log, std::string_view words) {
  const size_t end = log.find(words);
  if (end == log.npos) return 0;
  int value = 0, scale = 1;
  for (size_t at = end; at > 0 && std::isdigit(static_cast<unsigned char>(log[at - 1])); --at, scale *= 10)
    value += (log[at - 1] - '0') * scale;
  return value;
}

}  // namespace

ResourceUsage parse_usage(std::string_view log) {
  return {.registers = number_before(log, " registers"),
          .static_smem_bytes = number_before(log, " bytes smem"),
          .stack_bytes = number_before(log, " bytes stack frame"),
          .spill_store_bytes = number_before(log, " bytes spill stores"),
          .spill_load_bytes = number_before(log, " bytes spill loads")};
}

std::vector<std::string> code_faults(std::string_view log, std::string_view cubin) {
  std::vector<std::string> faults;
  const ResourceUsage usage = parse_usage(log);
  if (usage.registers == 0) faults.push_back("the log names no registers");
  if (usage.uses_local_memory())
    faults.push_back(fmt::format("local memory: {} bytes of stack, {} of spill stores, {} of spill loads",
                                 usage.stack_bytes, usage.spill_store_bytes, usage.spill_load_bytes));
  for (size_t at = cubin.find("$__internal_"); at != cubin.npos; at = cubin.find("$__internal_", at + 1)) {
    const std::string name(cubin.substr(at, cubin.find('\0', at) - at));
    // A warp collective under a condition that the compiler can't see to be uniform: on targets before sm_90 it wraps the
    // one instruction in a routine that gathers the warp. That is no slow path of arithmetic.
    bool collective = false;
    for (const char* helper : {"shflsync", "reduxsync", "votesync", "warpsync"}) collective |= name.find(helper) != name.npos;
    if (collective) continue;
    faults.push_back("calls " + name);
    break;
  }
  for (int code = 7508; code <= 7519; ++code) {
    if (code == 7509) continue;
    const size_t at = log.find(fmt::format("(C{})", code));
    if (at != log.npos) faults.emplace_back(log.substr(at, log.find('\n', at) - at));
  }
  return faults;
}

}  // namespace fulmen
