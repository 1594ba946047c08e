#include "engine/model.hpp"

#include "engine/dequantize.hpp"
#include "engine/input_error.hpp"

#include <fmt/format.h>

#include <cmath>

namespace fulmen::engine {
namespace {

class Reader {
 public:
  Reader(const GgufFile& file, std::string architecture) : file_(file), prefix_(std::move(architecture) + ".") {}

  int64_t integer(const char* key, int64_t least, int64_t most) const {
    const uint64_t value = file_.unsigned_integer(prefix_ + key);
    return in_range(key, value, least, most);
  }
  int64_t integer_or(const char* key, int64_t fallback, int64_t least, int64_t most) const {
    return file_.has(prefix_ + key) ? integer(key, least, most) : fallback;
  }
  double number_or(const char* key, double fallback, double least, double most) const {
    const double value = file_.number_or(prefix_ + key, fallback);
    if (!(value >= least && value <= most))
      fail(fmt::format("{}{}: expected {} to {}, found {}", prefix_, key, least, most, value));
    return value;
  }
  std::string text_or(const char* key, const char* fallback) const {
    return file_.has(prefix_ + key) ? std::string(file_.string(prefix_ + key)) : fallback;
  }

  [[noreturn]] void fail(const std::string& what) const { throw InputError(file_.path() + ": " + what); }
  void require(bool holds, const std::string& what) const {
    if (!holds) fail(what);
  }

  /// A tensor must be there with exactly this shape ([rows, cols]; cols = 0: a vector of `rows`).
  void expect(const std::string& name, int64_t rows, int64_t cols) const {
    require(file_.has_tensor(name), fmt::format("tensor {} is missing", name));
    const GgufTensor t = file_.tensor(name);
    const int64_t want[2] = {cols ? cols : rows, cols ? rows : 1};
    require(t.dims[0] == want[0] && t.dims[1] == want[1] && t.dims[2] == 1 && t.dims[3] == 1,
            fmt::format("tensor {}: expected [{}, {}], found [{}, {}, {}, {}]", name, want[0], want[1], t.dims[0],
                        t.dims[1], t.dims[2], t.dims[3]));
  }

 private:
  int64_t in_range(const char* key, uint64_t value, int64_t least, int64_t most) const {
    if (value < static_cast<uint64_t>(least) || value > static_cast<uint64_t>(most))
      fail(fmt::format("{}{}: expected {} to {}, found {}", prefix_, key, least, most, value));
    return static_cast<int64_t>(value);
  }

  const GgufFile& file_;
  std::string prefix_;
};

void check_tensors(const Reader& reader, const GgufFile& file, const ModelConfig& c) {
  reader.expect("token_embd.weight", c.vocab, c.hidden);
  reader.expect("output_norm.weight", c.hidden, 0);
  if (!c.tied_embeddings) reader.expect("output.weight", c.vocab, c.hidden);
  const int64_t q_rows = c.num_heads * c.head_dim, kv_rows = c.num_kv_heads * c.head_dim;
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    const std::string blk = fmt::format("blk.{}.", layer);
    reader.expect(blk + "attn_norm.weight", c.hidden, 0);
    reader.expect(blk + "ffn_norm.weight", c.hidden, 0);
    reader.expect(blk + "attn_q.weight", q_rows, c.hidden);
    reader.expect(blk + "attn_k.weight", kv_rows, c.hidden);
    reader.expect(blk + "attn_v.weight", kv_rows, c.hidden);
    reader.expect(blk + "attn_output.weight", c.hidden, q_rows);
    reader.expect(blk + "ffn_gate.weight", c.intermediate, c.hidden);
    reader.expect(blk + "ffn_up.weight", c.intermediate, c.hidden);
    reader.expect(blk + "ffn_down.weight", c.hidden, c.intermediate);
    for (const char* name : {"attn_q", "attn_k", "attn_v"}) {
      const std::string bias = blk + name + ".bias";
      if (c.qkv_bias) reader.expect(bias, name[5] == 'q' ? q_rows : kv_rows, 0);
      else reader.require(!file.has_tensor(bias), fmt::format("tensor {}: not expected in a {} model", bias,
                                                              c.architecture));
    }
    // What other members of the family have and this forward pass doesn't.
    for (const char* name : {"attn_q_norm.weight", "attn_output.bias", "ffn_gate_inp.weight", "ffn_up.bias"})
      reader.require(!file.has_tensor(blk + name), fmt::format("tensor {}{}: not supported", blk, name));
  }
}

}  // namespace

int64_t ModelConfig::parameters() const {
  const int64_t layer = qkv_rows() * hidden + num_heads * head_dim * hidden + 3 * hidden * intermediate + 2 * hidden +
                        (qkv_bias ? qkv_rows() : 0);
  return num_layers * layer + vocab * hidden * (tied_embeddings ? 1 : 2) + hidden;
}

ModelConfig read_model_config(const GgufFile& file) {
  ModelConfig c;
  c.architecture = file.string("general.architecture");
  if (c.architecture != "llama" && c.architecture != "qwen2")
    throw InputError(fmt::format("{}: general.architecture: expected llama or qwen2, found {}", file.path(),
                                 quoted(c.architecture)));
  if (file.has("general.name")) c.name = file.string("general.name");

  const Reader reader(file, c.architecture);
  c.num_layers = reader.integer("block_count", 1, 1024);
  c.hidden = reader.integer("embedding_length", 8, 1 << 20);
  c.intermediate = reader.integer("feed_forward_length", 8, 1 << 22);
  c.num_heads = reader.integer("attention.head_count", 1, 4096);
  c.num_kv_heads = reader.integer_or("attention.head_count_kv", c.num_heads, 1, 4096);
  c.context = reader.integer("context_length", 1, 1 << 24);
  c.norm_eps = reader.number_or("attention.layer_norm_rms_epsilon", 1e-5, 0, 1);

  reader.require(c.num_heads % c.num_kv_heads == 0,
                 fmt::format("head_count {} is not a multiple of head_count_kv {}", c.num_heads, c.num_kv_heads));
  if (!file.has(c.architecture + ".attention.key_length"))
    reader.require(c.hidden % c.num_heads == 0,
                   fmt::format("embedding_length {} is not a multiple of head_count {}", c.hidden, c.num_heads));
  c.head_dim = reader.integer_or("attention.key_length", c.hidden / c.num_heads, 8, 256);
  const int64_t value_dim = reader.integer_or("attention.value_length", c.head_dim, 8, 256);
  reader.require(value_dim == c.head_dim, fmt::format("attention.value_length: expected key_length {}, found {}",
                                                      c.head_dim, value_dim));
  reader.require(c.head_dim >= 8 && c.head_dim <= 256 && c.head_dim % 8 == 0,
                 fmt::format("head dimension: expected a multiple of 8 up to 256, found {}", c.head_dim));

  reader.require(file.has_tensor("token_embd.weight"), "tensor token_embd.weight is missing");
  c.vocab = reader.integer_or("vocab_size", file.tensor("token_embd.weight").dims[1], 1, 1 << 24);
  c.tied_embeddings = !file.has_tensor("output.weight");
  c.qkv_bias = c.architecture == "qwen2";

  c.rope_interleaved = c.architecture == "llama";
  c.rope_theta = reader.number_or("rope.freq_base", 10000, 1, 1e12);
  c.rotary_dim = reader.integer_or("rope.dimension_count", c.head_dim, 2, c.head_dim);
  reader.require(c.rotary_dim % 2 == 0, fmt::format("rope.dimension_count: expected an even number, found {}",
                                                    c.rotary_dim));
  const std::string scaling = reader.text_or("rope.scaling.type", "none");
  reader.require(scaling == "none" || scaling == "linear",
                 fmt::format("rope.scaling.type: expected none or linear, found {}", quoted(scaling)));
  if (scaling == "linear") c.rope_factor = reader.number_or("rope.scaling.factor", 1, 1e-3, 1e6);
  if (file.has_tensor("rope_freqs.weight")) {
    reader.expect("rope_freqs.weight", c.rotary_dim / 2, 0);
    c.rope_divisors.resize(static_cast<size_t>(c.rotary_dim / 2));
    dequantize_to_float(file.tensor("rope_freqs.weight"), 0, 1, c.rope_divisors.data());
    for (const float divisor : c.rope_divisors)
      reader.require(divisor > 0 && std::isfinite(divisor),
                     fmt::format("rope_freqs.weight: expected positive numbers, found {}", divisor));
  }
  check_tensors(reader, file, c);
  return c;
}

std::vector<float> rope_table(const ModelConfig& c, int64_t num_positions) {
  const int64_t pairs = c.rotary_dim / 2;
  std::vector<float> table(static_cast<size_t>(num_positions * c.rotary_dim));
  for (int64_t i = 0; i < pairs; ++i) {
    double frequency = std::pow(c.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(c.rotary_dim));
    frequency /= c.rope_factor;
    if (!c.rope_divisors.empty()) frequency /= c.rope_divisors[static_cast<size_t>(i)];
    for (int64_t p = 0; p < num_positions; ++p) {
      const double angle = static_cast<double>(p) * frequency;
      table[static_cast<size_t>(p * c.rotary_dim + i)] = static_cast<float>(std::cos(angle));
      table[static_cast<size_t>(p * c.rotary_dim + pairs + i)] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

}  // namespace fulmen::engine
