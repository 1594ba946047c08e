#include "fuzz/gguf_target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fulmen::fuzz::gguf_target({data, size});
  return 0;
}
