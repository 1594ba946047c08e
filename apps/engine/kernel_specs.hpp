// What the engine's GPU back end asks of Fulmen for a model: the executor makes its handles from it, and `fulmen prepare
// --model` compiles the same kernels without a GPU.
#pragma once

#include "engine/cpu_executor.hpp"
#include "engine/model.hpp"

#include <fulmen/fulmen.h>

#include <string>
#include <vector>

namespace fulmen::engine {

class KernelSpecs {
 public:
  struct OneAttention {
    fulmen_attention_spec spec;
    fulmen_attention_limits limits;
  };

  /// Throws InputError for a hidden size that can't be gathered (not a multiple of 8).
  KernelSpecs(const ModelConfig& config, const ExecutorLimits& limits, bool invariant);
  KernelSpecs(const KernelSpecs&) = delete;
  KernelSpecs& operator=(const KernelSpecs&) = delete;

  OneAttention mixed, decode;  // steps with prompt tokens; steps of one row a request
  OneAttention gather;         // copies rows by an index, see CudaExecutor::gather
  int64_t gather_dim;          // of its heads

  /// Everything, for fulmen_prepare and its kin. The specs point into this object.
  std::vector<fulmen_op_spec> all() const;

 private:
  fulmen_dtype dtype_;
};

/// What a step may hold, for the engine's options.
ExecutorLimits executor_limits(int32_t batch, int32_t chunk, int32_t page_size, int64_t context, fulmen_dtype kv_dtype);

/// Sizes from a config.json as Hugging Face's models have it. Throws InputError naming the member.
ModelConfig read_config_json(const std::string& path);

}  // namespace fulmen::engine
