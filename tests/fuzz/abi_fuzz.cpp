#include "fuzz/abi_target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fulmen::fuzz::Calls calls(1);
  fulmen::fuzz::abi_target(calls, fulmen::fuzz::bytes_source(data, size));
  return 0;
}
