// What this machine and this build have: fulmen_info, and prepare for a target that is not here.
#include <hwy/highway.h>
#include <nlohmann/json.hpp>

#include "core/args.hpp"
#include "core/check.hpp"
#include "core/context.hpp"
#include "core/cpus.hpp"
#include "cuda/driver.hpp"
#include "jit/kernels.hpp"
#include "jit/shipped.hpp"
#include "supports.hpp"
#include "text_result.hpp"

using namespace fulmen;
using Json = nlohmann::ordered_json;

namespace {

const char* simd_target() {
  const auto best = hwy::SupportedTargets() & -hwy::SupportedTargets();  // lower bits are better targets
  return hwy::TargetName(best);
}

Json supports_json() {
  Json ops = Json::object();
  for (int op = 0; op < FULMEN_OP_COUNT; ++op) {
    for (const auto& [name, backend] : {std::pair{"cpu", Backend::cpu}, std::pair{"cuda", Backend::cuda}}) {
      Json dtypes = Json::array();
      for (int dtype = 0; dtype <= FULMEN_U64; ++dtype) {
        if (supported_dtypes(backend, static_cast<fulmen_op>(op)) >> dtype & 1) dtypes.push_back(dtype_name(dtype));
      }
      ops[fulmen_op_name(static_cast<fulmen_op>(op))][name] = dtypes;
    }
  }
  return ops;
}

Json gpus_json() {
  std::string reason;
  const cuda::Driver* driver = cuda::try_driver(&reason);
  if (driver == nullptr) return {{"driver", nullptr}, {"reason", reason}, {"devices", Json::array()}};
  Json devices = Json::array();
  for (int i = 0; i < cuda::device_count(); ++i) {
    const cuda::DeviceInfo& device = cuda::device_info(i);
    devices.push_back({{"name", device.name},
                       {"arch", arch_of(device.major, device.minor)},
                       {"sms", device.num_sms},
                       {"shared_per_block_bytes", device.max_shared_per_block},
                       {"l2_bytes", device.l2_bytes},
                       {"memory_bytes", device.memory_bytes}});
  }
  return {{"driver", driver->version}, {"path", driver->path}, {"devices", devices}};
}

KernelOptions kernel_options(const fulmen_context_options& o) {
  KernelOptions options;
  if (o.cache_dir) options.cache_dir = o.cache_dir;
  if (o.nvrtc_path) options.nvrtc = o.nvrtc_path;
  if (o.kernels_dir) options.kernels_dir = o.kernels_dir;
  return options;
}

}  // namespace

extern "C" fulmen_status fulmen_info(char** out) {
  return guard([&] {
    require(out != nullptr, "info: json: expected a place for the text, found NULL");
    Json info = Json::parse(jit_info_json(KernelOptions{}));
    info["version"] = fulmen_version();
    info["cpu"] = {{"threads", usable_cpus()}, {"simd", simd_target()}};
    info["cuda"] = gpus_json();
    info["ops"] = supports_json();
    *out = to_c_text(info.dump(2));
  });
}

extern "C" fulmen_status fulmen_prepare_target(const char* target_name, const fulmen_context_options* given,
                                               const fulmen_op_spec* specs, int32_t num_specs,
                                               fulmen_progress_fn progress, void* user) {
  return guard([&] {
    require(target_name != nullptr, "prepare_target: target: expected a name such as \"sm_90a\", found NULL");
    require(num_specs >= 0 && (num_specs == 0 || specs != nullptr), "prepare_target: specs: expected {} specs, found NULL",
            num_specs);
    const Target& target = target_by_name(target_name);
    fulmen_context_options options{};
    if (given != nullptr) options = read_args("prepare_target", "options", given);
    for (int32_t i = 0; i < num_specs; ++i) {
      require_support(Backend::cuda, read_args("prepare_target", "specs", nth_spec(specs, i)));
    }
    KernelLibrary library(kernel_options(options));
    library.prepare(units_to_prepare(target, specs, num_specs), target, 0, [&](int done, int total, const CompiledKernel& kernel) {
      if (progress) progress(user, done, total, kernel.kernel.c_str(), kernel.seconds);
    });
  });
}
