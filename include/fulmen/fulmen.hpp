// Fulmen's C++17 interface: the C ABI of fulmen.h with ownership, exceptions and defaults. Header only.
//
//   auto context = fulmen::Context::cpu();
//   auto args = fulmen::make<fulmen_rms_norm_args>();
//   args.x = args.out = fulmen::tensor(x.data(), {num_tokens, hidden});
//   ...
//   fulmen::rms_norm(context, args);
//
// Shapes, dtypes, strides, stream order and errors of every op are those that fulmen.h states.
#pragma once

#include <fulmen/fulmen.h>

#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fulmen {

// Thrown by everything below; what() names the argument, what was expected and what was found.
class StatusError : public std::runtime_error {
 public:
  StatusError(fulmen_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
  fulmen_status status() const noexcept { return status_; }

 private:
  fulmen_status status_;
};

inline void check(fulmen_status status) {
  if (status != FULMEN_OK) throw StatusError(status, fulmen_last_error());
}

// A zeroed struct of the ABI that knows its size.
template <class T>
T make() {
  T value{};
  value.struct_size = sizeof(T);
  return value;
}

template <class T> struct dtype_of;
template <> struct dtype_of<float> { static constexpr fulmen_dtype value = FULMEN_F32; };
template <> struct dtype_of<int32_t> { static constexpr fulmen_dtype value = FULMEN_I32; };
template <> struct dtype_of<int64_t> { static constexpr fulmen_dtype value = FULMEN_I64; };
template <> struct dtype_of<uint8_t> { static constexpr fulmen_dtype value = FULMEN_U8; };
template <> struct dtype_of<uint32_t> { static constexpr fulmen_dtype value = FULMEN_U32; };
template <> struct dtype_of<uint64_t> { static constexpr fulmen_dtype value = FULMEN_U64; };

// A view of `data` with row-major strides; give `strides` (in elements) for any other layout.
inline fulmen_tensor tensor(const void* data, fulmen_dtype dtype, std::initializer_list<int64_t> shape,
                            std::initializer_list<int64_t> strides = {}) {
  if (shape.size() > FULMEN_MAX_DIMS) {
    throw StatusError(FULMEN_INVALID_ARGUMENT, "tensor: shape: expected at most 5 dimensions");
  }
  if (strides.size() != 0 && strides.size() != shape.size()) {
    throw StatusError(FULMEN_INVALID_ARGUMENT, "tensor: strides: expected one per dimension");
  }
  fulmen_tensor t{};
  t.data = const_cast<void*>(data);
  t.dtype = dtype;
  for (int64_t extent : shape) t.shape[t.ndim++] = extent;
  int64_t stride = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    t.stride[i] = strides.size() != 0 ? strides.begin()[i] : stride;
    stride *= t.shape[i];
  }
  return t;
}

template <class T>
fulmen_tensor tensor(const T* data, std::initializer_list<int64_t> shape, std::initializer_list<int64_t> strides = {}) {
  return tensor(data, dtype_of<T>::value, shape, strides);
}

class Context {
 public:
  explicit Context(const fulmen_context_options& options) {
    fulmen_context* handle = nullptr;
    check(fulmen_context_create(&options, &handle));
    handle_.reset(handle);
  }
  // num_threads 0: what FULMEN_NUM_THREADS, the affinity mask and the cgroup allow.
  static Context cpu(int num_threads = 0) {
    auto options = make<fulmen_context_options>();
    options.device_type = FULMEN_CPU;
    options.num_threads = num_threads;
    return Context(options);
  }
  static Context cuda(int device_index = 0) {
    auto options = make<fulmen_context_options>();
    options.device_type = FULMEN_CUDA;
    options.device_index = device_index;
    return Context(options);
  }

  // JSON, see fulmen_context_stats.
  std::string stats() const;

  fulmen_context* get() const noexcept { return handle_.get(); }
  int num_workers() const noexcept { return fulmen_context_num_workers(get()); }
  void seal() { check(fulmen_seal(get())); }
  void prepare(const std::vector<fulmen_op_spec>& specs, fulmen_progress_fn progress = nullptr, void* user = nullptr) {
    check(fulmen_prepare(get(), specs.data(), static_cast<int32_t>(specs.size()), progress, user));
  }
  // Once for a scratch memory, before its first run.
  void scratch_init(void* scratch, uint64_t bytes, fulmen_stream stream = nullptr) {
    check(fulmen_scratch_init(get(), scratch, bytes, stream));
  }

 private:
  struct Destroy {
    void operator()(fulmen_context* context) const noexcept { fulmen_context_destroy(context); }
  };
  std::unique_ptr<fulmen_context, Destroy> handle_;
};

class Attention {
 public:
  Attention(const Context& context, const fulmen_attention_spec& spec, const fulmen_attention_limits& limits) {
    fulmen_attention* handle = nullptr;
    check(fulmen_attention_create(context.get(), &spec, &limits, &handle));
    handle_.reset(handle);
  }
  fulmen_attention_sizes sizes() const {
    auto sizes = make<fulmen_attention_sizes>();
    check(fulmen_attention_sizes_of(get(), &sizes));
    return sizes;
  }
  void plan(const fulmen_attention_lengths& lengths, void* plan_mem, fulmen_stream stream = nullptr) const {
    check(fulmen_attention_plan(get(), &lengths, plan_mem, stream));
  }
  void run(const fulmen_attention_tensors& tensors, const void* plan_mem, void* scratch,
           fulmen_stream stream = nullptr) const {
    check(fulmen_attention_run(get(), &tensors, plan_mem, scratch, stream));
  }
  fulmen_attention* get() const noexcept { return handle_.get(); }

 private:
  struct Destroy {
    void operator()(fulmen_attention* attention) const noexcept { fulmen_attention_destroy(attention); }
  };
  std::unique_ptr<fulmen_attention, Destroy> handle_;
};

#define FULMEN_OP_(name)                                                                                       \
  inline void name(const Context& context, const fulmen_##name##_args& args, fulmen_stream stream = nullptr) { \
    check(fulmen_##name(context.get(), &args, stream));                                                        \
  }
FULMEN_OP_(append_kv)
FULMEN_OP_(merge_states)
FULMEN_OP_(merge_state)
FULMEN_OP_(rope)
FULMEN_OP_(rope_append)
FULMEN_OP_(linear)
FULMEN_OP_(rms_norm)
FULMEN_OP_(layer_norm)
FULMEN_OP_(act_and_mul)
FULMEN_OP_(softmax)
FULMEN_OP_(argmax)
FULMEN_OP_(sample)
FULMEN_OP_(filter)
FULMEN_OP_(top_k)
#undef FULMEN_OP_

inline std::string take_text(char* text) {
  std::string copy(text == nullptr ? "" : text);
  fulmen_string_free(text);
  return copy;
}

inline std::string Context::stats() const {
  char* json = nullptr;
  check(fulmen_context_stats(get(), &json));
  return take_text(json);
}

inline bool supports(const char* target, const fulmen_op_spec& spec) {
  const fulmen_status status = fulmen_supports(target, &spec);
  if (status != FULMEN_OK && status != FULMEN_UNSUPPORTED) check(status);
  return status == FULMEN_OK;
}
inline std::string explain(const char* target, const fulmen_op_spec& spec) {
  char* json = nullptr;
  check(fulmen_explain(target, &spec, &json));
  return take_text(json);
}
inline std::string info() {
  char* json = nullptr;
  check(fulmen_info(&json));
  return take_text(json);
}

}  // namespace fulmen
