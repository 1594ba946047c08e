#include "random_model.hpp"

#include "engine/input_error.hpp"

#include <fmt/format.h>

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace fulmen::engine_check {
namespace {

using namespace fulmen::engine;

constexpr uint64_t kAlignment = 32;
constexpr uint32_t kF32 = 0, kBf16 = 30;                    // GGUF's dtypes
constexpr uint32_t kMetaU32 = 4, kMetaF32 = 6, kMetaString = 8;

struct Tensor {
  std::string name;
  int64_t rows, cols;  // rows = 0: a vector of f32 ones
  double scale;        // standard deviation
  uint64_t offset = 0;
  uint64_t bytes() const { return static_cast<uint64_t>(rows == 0 ? cols * 4 : rows * cols * 2); }
};

std::vector<Tensor> tensors_of(const ModelConfig& c) {
  std::vector<Tensor> all;
  const auto matrix = [&](std::string name, int64_t rows, int64_t cols, double gain) {
    all.push_back({std::move(name), rows, cols, gain / std::sqrt(static_cast<double>(cols))});
  };
  const auto ones = [&](std::string name) { all.push_back({std::move(name), 0, c.hidden, 0}); };
  const double branch = 1 / std::sqrt(2.0 * static_cast<double>(c.num_layers));  // each adds its share to the stream
  const int64_t q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  all.push_back({"token_embd.weight", c.vocab, c.hidden, c.tied_embeddings ? 1 / std::sqrt(static_cast<double>(c.hidden)) : 1});
  ones("output_norm.weight");
  if (!c.tied_embeddings) matrix("output.weight", c.vocab, c.hidden, 1);
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string blk = fmt::format("blk.{}.", i);
    ones(blk + "attn_norm.weight");
    ones(blk + "ffn_norm.weight");
    matrix(blk + "attn_q.weight", q, c.hidden, 1);
    matrix(blk + "attn_k.weight", kv, c.hidden, 1);
    matrix(blk + "attn_v.weight", kv, c.hidden, 1);
    matrix(blk + "attn_output.weight", c.hidden, q, branch);
    matrix(blk + "ffn_gate.weight", c.intermediate, c.hidden, 1);
    matrix(blk + "ffn_up.weight", c.intermediate, c.hidden, 1);
    matrix(blk + "ffn_down.weight", c.hidden, c.intermediate, branch);
  }
  return all;
}

class Header {
 public:
  template <class T>
  void put(T value) {
    const char* bytes = reinterpret_cast<const char*>(&value);
    text_.append(bytes, sizeof value);
  }
  void word(const std::string& value) {
    put<uint64_t>(value.size());
    text_ += value;
  }
  void integer(const std::string& key, int64_t value) {
    word(key);
    put(kMetaU32);
    put(static_cast<uint32_t>(value));
  }
  void number(const std::string& key, double value) {
    word(key);
    put(kMetaF32);
    put(static_cast<float>(value));
  }
  void text(const std::string& key, const std::string& value) {
    word(key);
    put(kMetaString);
    word(value);
  }
  void raw(const char* bytes) { text_ += bytes; }
  std::string finish() {
    text_.resize((text_.size() + kAlignment - 1) / kAlignment * kAlignment);
    return std::move(text_);
  }

 private:
  std::string text_;
};

std::string header_of(const ModelConfig& c, std::vector<Tensor>& tensors) {
  constexpr uint64_t kKeys = 11;
  Header h;
  h.raw("GGUF");
  h.put<uint32_t>(3);
  h.put<uint64_t>(tensors.size());
  h.put<uint64_t>(kKeys);
  h.text("general.architecture", "llama");
  h.text("general.name", c.name);
  h.integer("llama.block_count", c.num_layers);
  h.integer("llama.embedding_length", c.hidden);
  h.integer("llama.feed_forward_length", c.intermediate);
  h.integer("llama.attention.head_count", c.num_heads);
  h.integer("llama.attention.head_count_kv", c.num_kv_heads);
  h.integer("llama.attention.key_length", c.head_dim);
  h.integer("llama.context_length", c.context);
  h.number("llama.rope.freq_base", c.rope_theta);
  h.number("llama.attention.layer_norm_rms_epsilon", c.norm_eps);
  uint64_t at = 0;
  for (Tensor& t : tensors) {
    h.word(t.name);
    h.put<uint32_t>(t.rows == 0 ? 1 : 2);
    h.put(static_cast<uint64_t>(t.cols));
    if (t.rows > 0) h.put(static_cast<uint64_t>(t.rows));
    h.put(t.rows == 0 ? kF32 : kBf16);
    h.put(t.offset = at);
    at += (t.bytes() + kAlignment - 1) / kAlignment * kAlignment;
  }
  return h.finish();
}

// Four uniform values for each step of a 64-bit generator, as bf16 by truncation.
void fill_row(uint64_t seed, double scale, int64_t count, uint16_t* out) {
  const float unit = static_cast<float>(scale * std::sqrt(3.0) / 32768);
  uint64_t state = (seed + 1) * 0x9E3779B97F4A7C15u;
  for (int64_t i = 0; i < count; ++i) {
    if (i % 4 == 0) state = state * 6364136223846793005u + 1442695040888963407u;
    const auto value = static_cast<int16_t>(((state ^ state >> 29) * 0xBF58476D1CE4E5B9u) >> (16 * (i % 4)));
    const float x = static_cast<float>(value) * unit;
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    out[i] = static_cast<uint16_t>(bits >> 16);
  }
}

}  // namespace

ModelConfig named_shape(const std::string& name) {
  ModelConfig c;
  c.architecture = "llama";
  c.name = name;
  if (name == "llama-3-8b") {
    c.num_layers = 32, c.hidden = 4096, c.intermediate = 14336, c.num_heads = 32, c.num_kv_heads = 8, c.head_dim = 128;
    c.vocab = 128256, c.context = 8192, c.norm_eps = 1e-5, c.rope_theta = 500000;
  } else if (name == "smollm2-135m") {
    c.num_layers = 30, c.hidden = 576, c.intermediate = 1536, c.num_heads = 9, c.num_kv_heads = 3, c.head_dim = 64;
    c.vocab = 49152, c.context = 8192, c.norm_eps = 1e-5, c.rope_theta = 100000, c.tied_embeddings = true;
  } else {
    throw InputError(fmt::format("--random: expected llama-3-8b or smollm2-135m, found {}", quoted(name)));
  }
  return c;
}

GgufFile random_model(const ModelConfig& shape, Pool& pool) {
  std::vector<Tensor> tensors = tensors_of(shape);
  const std::string header = header_of(shape, tensors);
  const uint64_t bytes = header.size() + tensors.back().offset + tensors.back().bytes();
  const int file = memfd_create("random-model", 0);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0)
    throw InputError(fmt::format("--random: no memory file of {} MB", bytes / 1000000));
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) throw InputError(fmt::format("--random: {} MB can't be mapped", bytes / 1000000));
  char* data = static_cast<char*>(mapped);
  std::copy(header.begin(), header.end(), data);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    char* at = data + header.size() + t.offset;
    if (t.rows == 0) {
      for (int64_t c = 0; c < t.cols; ++c) reinterpret_cast<float*>(at)[c] = 1;
      continue;
    }
    pool.parallel_for(t.rows, [&](int64_t row) {
      fill_row(i << 32 | static_cast<uint64_t>(row), t.scale, t.cols, reinterpret_cast<uint16_t*>(at) + row * t.cols);
    });
  }
  munmap(mapped, bytes);
  return GgufFile::open(fmt::format("/proc/self/fd/{}", file));  // the descriptor stays open as long as the process
}

}  // namespace fulmen::engine_check
