#include "plan/sampling.hpp"

#include "plan/alignment.hpp"

namespace fulmen {
namespace {

// Three blocks of 256 threads, 80 registers each and 75 KB of shared memory fill a multiprocessor: while one waits for its part of a
// row, the others compute. Eight blocks hold a row of 132,864 fp32 words.
constexpr int kThreads = 256;
constexpr int kCluster = 8;         // the most that every machine with clusters runs
constexpr int kHeldBytes = 66432;   // 3 x (kRowShared + this + 1 KB of the system's) = 228 KB

int cluster_of(const Target& target) { return target.major >= 9 ? kCluster : 1; }

template <class Params>
Unit unit_of(const char* op, const char* folder, const char* params_type, const SamplingConfig& config) {
  return make_unit<Params>(op, {std::string("kernels/") + folder + "/" + op + ".cuh"}, "SamplingConfig", config, params_type,
                           std::string(op) + "<kConfig>(params);");
}

std::vector<Unit> units_of(Unit (*make)(const SamplingConfig&), const Target& target, int held_bytes = kHeldBytes) {
  std::vector<Unit> units;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const int bytes : {16, dtype_bytes(dtype)}) {
      units.push_back(make({.dtype = dtype, .vector_bytes = bytes, .threads = kThreads, .cluster = cluster_of(target), .held_bytes = held_bytes}));
    }
  }
  return units;
}

}  // namespace

SamplingConfig choose_sampling(DType dtype, const void* x, int64_t row_stride, bool holds, const Target& target) {
  const int element = dtype_bytes(dtype);
  return {.dtype = dtype, .vector_bytes = is_aligned(x, {row_stride}, element, 16) ? 16 : element, .threads = kThreads,
          .cluster = cluster_of(target), .held_bytes = holds ? kHeldBytes : 0};
}

int64_t sampling_grid(const SamplingConfig& config, int64_t rows) { return rows * config.cluster; }

Unit sample_unit(const SamplingConfig& c) { return unit_of<SampleParams>("sample", "sampling", "SampleParams", c); }
Unit filter_unit(const SamplingConfig& c) { return unit_of<FilterOpParams>("filter", "sampling", "FilterOpParams", c); }
Unit softmax_unit(const SamplingConfig& c) { return unit_of<SoftmaxParams>("softmax", "sampling", "SoftmaxParams", c); }
Unit argmax_unit(const SamplingConfig& c) { return unit_of<ArgmaxParams>("argmax", "sampling", "ArgmaxParams", c); }
Unit top_k_unit(const SamplingConfig& c) { return unit_of<TopKParams>("top_k", "topk", "TopKParams", c); }

std::vector<Unit> sample_units(const Target& t) { return units_of(sample_unit, t); }
std::vector<Unit> filter_units(const Target& t) { return units_of(filter_unit, t); }
std::vector<Unit> softmax_units(const Target& t) { return units_of(softmax_unit, t); }
std::vector<Unit> argmax_units(const Target& t) { return units_of(argmax_unit, t, 0); }
std::vector<Unit> top_k_units(const Target& t) { return units_of(top_k_unit, t); }

}  // namespace fulmen
