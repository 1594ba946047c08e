#include "core/error.hpp"

namespace fulmen {
namespace {
thread_local std::string last_error;
}

void set_last_error(std::string text) noexcept { last_error = std::move(text); }
void clear_last_error() noexcept { last_error.clear(); }

}  // namespace fulmen

extern "C" const char* fulmen_last_error(void) { return fulmen::last_error.c_str(); }

extern "C" const char* fulmen_status_name(fulmen_status status) {
  switch (status) {
    case FULMEN_OK: return "ok";
    case FULMEN_INVALID_ARGUMENT: return "invalid_argument";
    case FULMEN_UNSUPPORTED: return "unsupported";
    case FULMEN_OUT_OF_MEMORY: return "out_of_memory";
    case FULMEN_NOT_PREPARED: return "not_prepared";
    case FULMEN_COMPILE_FAILED: return "compile_failed";
    case FULMEN_NO_DEVICE: return "no_device";
    case FULMEN_CUDA_ERROR: return "cuda_error";
    case FULMEN_CUDA_STICKY: return "cuda_sticky";
    case FULMEN_FORKED: return "forked";
    case FULMEN_IO_ERROR: return "io_error";
    case FULMEN_INTERNAL: return "internal";
  }
  return "unknown status";
}
