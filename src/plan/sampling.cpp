#include "plan/sampling.hpp"

#include <algorithm>

#include "plan/alignment.hpp"

namespace fulmen {
namespace {

constexpr int kThreads = 512;     // two rows of 512 threads with 64 registers fill a multiprocessor
constexpr int kBlocksPerSm = 2;

template <class Params>
Unit unit_of(const char* op, const char* folder, const char* params_type, const SamplingConfig& config) {
  return make_unit<Params>(op, {std::string("kernels/") + folder + "/" + op + ".cuh"}, "SamplingConfig", config, params_type,
                           std::string(op) + "<kConfig>(params);");
}

std::vector<Unit> units_of(Unit (*make)(const SamplingConfig&), bool scratch) {
  std::vector<Unit> units;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const int bytes : {16, dtype_bytes(dtype)}) {
      units.push_back(make({.dtype = dtype, .vector_bytes = bytes, .threads = kThreads, .scratch = scratch}));
    }
  }
  return units;
}

}  // namespace

SamplingConfig choose_sampling(DType dtype, const void* x, int64_t row_stride, bool scratch) {
  const int element = dtype_bytes(dtype);
  return {.dtype = dtype, .vector_bytes = is_aligned(x, {row_stride}, element, 16) ? 16 : element, .threads = kThreads,
          .scratch = scratch};
}

int64_t sampling_grid(int64_t rows, const Target& target) {
  return std::min<int64_t>(rows, static_cast<int64_t>(target.num_sms) * kBlocksPerSm);
}

Unit sample_unit(const SamplingConfig& c) { return unit_of<SampleParams>("sample", "sampling", "SampleParams", c); }
Unit filter_unit(const SamplingConfig& c) { return unit_of<FilterOpParams>("filter", "sampling", "FilterOpParams", c); }
Unit softmax_unit(const SamplingConfig& c) { return unit_of<SoftmaxParams>("softmax", "sampling", "SoftmaxParams", c); }
Unit argmax_unit(const SamplingConfig& c) { return unit_of<ArgmaxParams>("argmax", "sampling", "ArgmaxParams", c); }
Unit top_k_unit(const SamplingConfig& c) { return unit_of<TopKParams>("top_k", "topk", "TopKParams", c); }

std::vector<Unit> sample_units(const Target&) { return units_of(sample_unit, true); }
std::vector<Unit> filter_units(const Target&) { return units_of(filter_unit, true); }
std::vector<Unit> softmax_units(const Target&) { return units_of(softmax_unit, false); }
std::vector<Unit> argmax_units(const Target&) { return units_of(argmax_unit, false); }
std::vector<Unit> top_k_units(const Target&) { return units_of(top_k_unit, true); }

}  // namespace fulmen
