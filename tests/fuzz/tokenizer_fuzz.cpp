#include "fuzz/tokenizer_target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fulmen::fuzz::tokenizer_target({data, size});
  return 0;
}
