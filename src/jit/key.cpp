#include "jit/key.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <iterator>

namespace fulmen {

std::vector<std::string> compile_options(const Target& target) {
  return {
      "--gpu-architecture=" + target.arch,  // real, so that a cubin comes out and the driver compiles nothing
      "--std=c++20",
      "--device-as-default-execution-space",  // a config's constexpr members need no marks
      "--fmad=false",           // sums that must agree between back ends name their fma; see docs/decisions
      "--no-source-include",    // the current folder is no include path
      "--minimal",              // no textures, no device runtime: saves a tenth of a small compile
      "--ptxas-options=-v",     // registers, spills and shared memory into the log
  };
}

std::string key_text(std::string_view program, const Sources& reached, const std::vector<std::string>& options) {
  std::string key = "fulmen kernel, format 1\n";
  const auto add = [out = std::back_inserter(key)](std::string_view what, std::string_view text) {
    fmt::format_to(out, "{} {}\n{}\n", what, text.size(), text);
  };
  for (const std::string& option : options) add("option", option);
  add("program", program);
  for (const auto& [name, text] : reached) add(name, text);
  return key;
}

std::string key_name(std::string_view key_text) {
  const XXH128_hash_t hash = XXH3_128bits(key_text.data(), key_text.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace fulmen
