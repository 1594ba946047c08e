// What this machine and this build have (fulmen_info), and what a context has done.
#include <hwy/highway.h>
#include <nlohmann/json.hpp>

#include "core/check.hpp"
#include "core/context.hpp"
#include "core/cpus.hpp"
#include "cuda/driver.hpp"
#include "jit/kernels.hpp"
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

extern "C" fulmen_status fulmen_context_stats(fulmen_context* context, char** out) {
  return guard([&] {
    const fulmen_context& c = deref("context_stats", context);
    require(out != nullptr, "context_stats: json: expected a place for the text, found NULL");
    const DeviceState::Stats s = c.device ? c.device->stats() : DeviceState::Stats{};
    *out = to_c_text(Json{{"compiles", s.compiles},
                          {"disk_hits", s.disk_hits},
                          {"memory_hits", s.memory_hits},
                          {"sealed", s.sealed},
                          {"launches", s.launches},
                          {"bytes_from_device", s.bytes_from_device}}
                         .dump());
  });
}
