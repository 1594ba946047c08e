#include "engine/model.hpp"

#include <gtest/gtest.h>

#include "apps/small_model.hpp"
#include "engine/input_error.hpp"

namespace fulmen::engine {
namespace {

using test::GgufBuilder;
using test::SmallModel;

GgufFile open(const GgufBuilder& builder) { return GgufFile::from_memory(builder.bytes(), "small.gguf"); }

std::string error_of(const GgufBuilder& builder) {
  try {
    read_model_config(open(builder));
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ModelConfig, ReadsTheFamilies) {
  const ModelConfig smollm = read_model_config(open(SmallModel::smollm().gguf()));
  EXPECT_EQ(smollm.num_layers, 2);
  EXPECT_EQ(smollm.head_dim, 8);
  EXPECT_TRUE(smollm.tied_embeddings);
  EXPECT_TRUE(smollm.rope_interleaved);
  EXPECT_FALSE(smollm.qkv_bias);
  EXPECT_EQ(smollm.kv_bytes_per_token(2), 2 * 2 * 2 * 8 * 2);

  const ModelConfig qwen2 = read_model_config(open(SmallModel::qwen2().gguf()));
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.rope_interleaved);
  EXPECT_FALSE(qwen2.tied_embeddings);

  EXPECT_EQ(read_model_config(open(SmallModel::llama3().gguf())).rope_divisors.size(), 8u);
}

TEST(ModelConfig, CountsParameters) {
  for (const SmallModel& model : {SmallModel::smollm(), SmallModel::qwen2(), SmallModel::llama3()}) {
    int64_t expected = 0;
    for (const auto& tensor : model.tensors()) expected += tensor.rows * std::max<int64_t>(tensor.cols, 1);
    EXPECT_EQ(read_model_config(open(model.gguf())).parameters(), expected);
  }
}

struct Wrong {
  const char* key;
  double value;
  const char* says;
};

TEST(ModelConfig, RefusesEachWrongNumberByName) {
  const Wrong cases[] = {
      {"block_count", 0, "llama.block_count: expected 1 to 1024, found 0"},
      {"block_count", 3, "blk.2."},
      {"block_count", 4e9, "llama.block_count"},
      {"context_length", 0, "llama.context_length"},
      {"embedding_length", 0, "llama.embedding_length"},
      {"embedding_length", 40, "token_embd.weight: expected [40,"},
      {"feed_forward_length", 64, "ffn_gate.weight: expected [48, 64], found [48, 48, 1, 1]"},
      {"attention.head_count", 0, "llama.attention.head_count"},
      {"attention.head_count", 5, "head_count 5 is not a multiple of head_count_kv 2"},
      {"attention.head_count_kv", 3, "attn_k.weight: expected [48, 24]"},
      {"attention.key_length", 4, "attention.key_length"},
      {"attention.value_length", 16, "attention.value_length: expected key_length 8, found 16"},
      {"rope.dimension_count", 3, "rope.dimension_count: expected an even number, found 3"},
      {"rope.dimension_count", 16, "rope.dimension_count"},
      {"rope.freq_base", 0, "rope.freq_base"},
      {"rope.freq_base", NAN, "rope.freq_base"},
      {"attention.layer_norm_rms_epsilon", -1, "layer_norm_rms_epsilon"},
  };
  for (const Wrong& wrong : cases) {
    const std::string error = error_of(SmallModel::smollm().gguf({{wrong.key, wrong.value}}));
    EXPECT_NE(error.find(wrong.says), std::string::npos) << wrong.key << " = " << wrong.value << ": " << error;
    EXPECT_EQ(error.find("small.gguf: "), 0u) << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

TEST(ModelConfig, RefusesOtherArchitecturesAndScalings) {
  EXPECT_EQ(error_of(GgufBuilder().text("general.architecture", "mamba")),
            "small.gguf: general.architecture: expected llama or qwen2, found 'mamba'");
  GgufBuilder yarn = SmallModel::smollm().gguf();
  yarn.text("llama.rope.scaling.type", "yarn");
  EXPECT_NE(error_of(yarn).find("rope.scaling.type: expected none or linear"), std::string::npos) << error_of(yarn);
  SmallModel zero = SmallModel::llama3();
  zero.rope_divisors[3] = 0;
  EXPECT_NE(error_of(zero.gguf()).find("rope_freqs.weight: expected positive numbers, found 0"), std::string::npos);
}

TEST(RopeTable, HoldsCosinesAndSines) {
  ModelConfig c;
  c.rotary_dim = 4;
  c.rope_theta = 100;
  c.rope_divisors = {1, 2};
  const std::vector<float> table = rope_table(c, 3);
  EXPECT_FLOAT_EQ(table[2 * 4 + 0], std::cos(2.0));
  EXPECT_FLOAT_EQ(table[2 * 4 + 1], std::cos(2 * 0.1 / 2));
  EXPECT_FLOAT_EQ(table[2 * 4 + 2], std::sin(2.0));
  EXPECT_FLOAT_EQ(table[2 * 4 + 3], std::sin(2 * 0.1 / 2));
}

}  // namespace
}  // namespace fulmen::engine
