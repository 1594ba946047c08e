#include "fuzz/json_prompt_target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fulmen::fuzz::json_prompt_target({data, size});
  return 0;
}
