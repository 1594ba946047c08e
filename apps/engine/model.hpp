// The hyper-parameters of a Llama-family model, read from a GGUF file and checked one by one.
#pragma once

#include "engine/gguf.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace fulmen::engine {

struct ModelConfig {
  std::string architecture;        // llama | qwen2
  std::string name;
  int64_t num_layers = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  int64_t vocab = 0;
  int64_t context = 0;             // tokens the model was made for
  double norm_eps = 0;
  bool qkv_bias = false;           // Qwen2
  bool tied_embeddings = false;    // no output.weight: the embedding table is used twice

  double rope_theta = 0;
  int64_t rotary_dim = 0;
  bool rope_interleaved = false;   // llama files store q and k so that pairs are neighbours; qwen2 files don't
  double rope_factor = 1;          // linear scaling
  std::vector<float> rope_divisors;  // Llama-3.1's scaling: a divisor per pair, or empty

  int64_t qkv_rows() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
  int64_t parameters() const;
  /// K and V of one token in all layers.
  int64_t kv_bytes_per_token(int64_t element_bytes) const {
    return 2 * num_layers * num_kv_heads * head_dim * element_bytes;
  }
};

/// Throws InputError naming key or tensor, what was expected and what was found.
ModelConfig read_model_config(const GgufFile& file);

/// f32 [num_positions, rotary_dim]: cosines in the first half of a row, sines in the second; computed in double.
std::vector<float> rope_table(const ModelConfig& config, int64_t num_positions);

}  // namespace fulmen::engine
