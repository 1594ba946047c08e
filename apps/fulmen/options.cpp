#include "options.hpp"

#include "terminal.hpp"

#include "engine/cuda_driver.hpp"
#include "engine/input_error.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

namespace fulmen::command {
namespace {

namespace fs = std::filesystem;
constexpr const char* kModelName = "smollm2-135m-instruct.gguf";

std::optional<std::string> find_above(fs::path folder) {
  std::error_code ignored;
  for (;; folder = folder.parent_path()) {
    const fs::path model = folder / ".fulmen" / "model" / kModelName;
    if (fs::is_regular_file(model, ignored)) return model.string();
    if (!folder.has_relative_path()) return std::nullopt;
  }
}

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// Without --device a machine that has no GPU is not worth a note.
bool gpu_is_expected(const ModelOptions& options) {
  std::error_code ignored;
  return options.device_given || fs::exists("/dev/nvidiactl", ignored);
}

}  // namespace

std::string default_model() {
  if (const std::string chosen = variable("FULMEN_MODEL"); !chosen.empty()) return chosen;
  std::error_code ignored;
  if (auto found = find_above(fs::current_path(ignored))) return *found;
  if (auto found = find_above(fs::read_symlink("/proc/self/exe", ignored).parent_path())) return *found;
  std::string data = variable("XDG_DATA_HOME");
  if (data.empty() && !variable("HOME").empty()) data = variable("HOME") + "/.local/share";
  const fs::path installed = fs::path(data) / "fulmen" / kModelName;
  if (!data.empty() && fs::is_regular_file(installed, ignored)) return installed.string();
  throw engine::InputError(
      fmt::format("no model: name one with --model or FULMEN_MODEL, or run `make demo` once, which fetches "
                  ".fulmen/model/{}; {} isn't there either",
                  kModelName, installed.string()));
}

std::unique_ptr<engine::Engine> make_engine(const ModelOptions& options) {
  engine::EngineOptions e;
  e.model_path = options.model.empty() ? default_model() : options.model;
  e.mmap = !options.no_mmap;
  e.threads = options.threads;
  e.context = options.context;
  e.batch = options.batch;
  e.chunk = options.chunk;
  e.page_size = options.page_size;
  e.pages = options.pages;
  e.kv_memory = options.kv_memory;
  e.kv_dtype = options.kv_type == "f32" ? FULMEN_F32 : options.kv_type == "bf16" ? FULMEN_BF16 : FULMEN_F16;
  e.share_prefixes = !options.no_prefix_sharing;
  using Device = engine::EngineOptions::Device;
  e.device = options.device == "cuda"                               ? Device::kCuda
             : options.device == "auto" && gpu_is_expected(options) ? Device::kAuto
                                                                    : Device::kCpu;
  e.invariant = options.invariant;
  try {
    auto engine = std::make_unique<engine::Engine>(e);
    if (!engine->device_note().empty()) note(fmt::format("no GPU is used: {}", engine->device_note()));
    return engine;
  } catch (const engine::cuda::Unavailable& error) {
    throw NoDevice{fmt::format("--device cuda: {}", error.what())};
  }
}

}  // namespace fulmen::command
