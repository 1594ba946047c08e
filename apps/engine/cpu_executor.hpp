// The forward pass on the CPU: the engine's matrix product, everything else by Fulmen.
#pragma once

#include "engine/executor.hpp"
#include "engine/gemm.hpp"
#include "engine/model.hpp"
#include "engine/pool.hpp"

#include <fulmen/fulmen.hpp>

#include <optional>
#include <string>
#include <vector>

namespace fulmen::engine {

struct ExecutorLimits {
  int64_t page_size = 16, num_pages = 1024;
  int64_t max_requests = 32, max_rows = 512, max_context = 2048;
  fulmen_dtype kv_dtype = FULMEN_F16;  // f16 | bf16 | f32
};

class CpuExecutor final : public Executor {
 public:
  CpuExecutor(const ModelConfig& config, const GgufFile& file, Pool& pool, const ExecutorLimits& limits);

  void run(const Step& step, std::span<int32_t> next_tokens) override;
  std::span<const float> logits() override { return logits_; }
  PartSeconds seconds() const override { return seconds_; }
  int64_t weight_bytes() const override;
  int64_t kv_bytes_per_token() const override;
  std::string_view description() const override { return description_; }

 private:
  struct Layer {
    std::vector<float> attention_norm, mlp_norm;
    PackedMatrix qkv, output, gate_up, down;
    std::vector<float> qkv_bias;
  };

  void load(const GgufFile& file);
  void make_attention();
  void plan(const Step& step);
  void reserve_rows(int64_t rows);
  void embed(const Step& step);
  void attention_block(const Layer& layer, int64_t index, const Step& step);
  void mlp_block(const Layer& layer, int64_t rows);
  void sample(const Step& step, std::span<int32_t> next_tokens);

  void norm(const float* x, int64_t rows, const std::vector<float>& weight, float* residual, float* out);
  void multiply(const PackedMatrix& weights, const float* x, int64_t rows, const std::vector<float>& bias, float* out);
  fulmen_tensor cache(int64_t layer, int64_t k_or_v) const;
  int64_t kv_element_bytes() const { return limits_.kv_dtype == FULMEN_F32 ? 4 : 2; }

  ModelConfig config_;
  ExecutorLimits limits_;
  Pool& pool_;
  Context context_;
  std::optional<Attention> attention_, shared_attention_;  // shared_: keys in two levels
  std::string description_;

  PackedMatrix embedding_, head_;  // head_ is empty when the two are one
  std::vector<float> final_norm_;
  std::vector<Layer> layers_;
  std::vector<float> rope_table_;

  Buffer kv_cache_;  // [page][layer][k, v][page_size][kv head][head_dim]
  Buffer plan_, scratch_;

  // Activations, f32 [rows, ...].
  std::vector<float> residual_, x_, qkv_, attended_, gate_up_, activated_, logits_;
  std::vector<uint16_t> qkv_half_;  // what attention and the cache take, when they are not f32
  MatmulScratch matmul_scratch_;
  PartSeconds seconds_{};
};

}  // namespace fulmen::engine
