#include "core/context.hpp"

#include "core/args.hpp"
#include "cuda/state.hpp"

using namespace fulmen;

extern "C" fulmen_status fulmen_context_create(const fulmen_context_options* options, fulmen_context** out) {
  return guard([&] {
    require(out != nullptr, "context_create: context: expected a place for the handle, found NULL");
    *out = nullptr;
    fulmen_context_options o{};
    if (options != nullptr) o = read_args("context_create", "options", options);
    require(o.num_threads >= 0 && o.num_threads <= 1024, "context_create: num_threads: expected 0 to 1024, found {}",
            o.num_threads);

    require(o.device_type == 0 || o.device_type == FULMEN_CPU || o.device_type == FULMEN_CUDA,
            "context_create: device_type: expected FULMEN_CPU or FULMEN_CUDA, found {}", o.device_type);
    auto context = std::make_unique<fulmen_context>();
    context->device_type = o.device_type == 0 ? FULMEN_CPU : static_cast<fulmen_device_type>(o.device_type);
    context->device_index = o.device_index;
    context->paths = {o.cache_dir ? o.cache_dir : "", o.nvrtc_path ? o.nvrtc_path : "",
                      o.kernels_dir ? o.kernels_dir : ""};
    if (context->is_cpu()) {
      require(o.device_index == 0, "context_create: device_index: expected 0 for the CPU, found {}", o.device_index);
      context->pool = o.parallel_for ? Pool(o.parallel_for, o.parallel_user, o.num_threads) : Pool(o.num_threads);
    } else {
      require(o.device_type == FULMEN_CUDA, "context_create: device_type: expected FULMEN_CPU or FULMEN_CUDA, found {}",
              o.device_type);
      context->device = cuda::make_state(o.device_index, context->paths);
    }
    *out = context.release();
  });
}

extern "C" void fulmen_context_destroy(fulmen_context* context) { delete context; }

extern "C" int32_t fulmen_context_num_workers(const fulmen_context* context) {
  if (context == nullptr) return 0;
  return context->is_cpu() ? context->pool.num_threads() : context->device->num_workers();
}

extern "C" fulmen_status fulmen_seal(fulmen_context* context) {
  return guard([&] {
    if (deref("seal", context).device) context->device->seal();
  });
}
