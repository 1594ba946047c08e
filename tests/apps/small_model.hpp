#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "apps/gguf_builder.hpp"
#include "apps/small_vocabulary.hpp"

namespace fulmen::test {

/// A random Llama-family model of a few layers, written as a GGUF file, and its forward pass in plain doubles.
struct SmallModel {
  std::string architecture = "llama";
  int layers = 2, hidden = 32, heads = 4, kv_heads = 2, head_dim = 8, intermediate = 48;
  int context = 512;
  double theta = 10000, eps = 1e-5;
  bool tied = true;
  std::vector<float> rope_divisors;  // Llama-3.1
  uint32_t seed = 1;
  std::string name = "small";

  static SmallModel smollm() {
    SmallModel m;
    m.hidden = 48;
    m.heads = 6;
    m.theta = 100000;
    return m;
  }
  static SmallModel qwen2() {
    SmallModel m;
    m.architecture = "qwen2";
    m.hidden = 64;
    m.kv_heads = 1;
    m.head_dim = 16;
    m.theta = 1e6;
    m.eps = 1e-6;
    m.tied = false;
    return m;
  }
  static SmallModel llama3() {
    SmallModel m;
    m.hidden = 64;
    m.head_dim = 16;
    m.theta = 500000;
    m.tied = false;
    m.rope_divisors = {1, 1, 1, 1.5f, 3, 8, 8, 8};
    return m;
  }

  SmallVocabulary vocabulary() const {
    SmallVocabulary v = SmallVocabulary::chat();
    return v;
  }
  int vocab() const { return static_cast<int>(vocabulary().data().tokens.size()); }
  bool has_bias() const { return architecture == "qwen2"; }

  /// Values that are exact in fp16, so that the engine rounds nothing.
  std::vector<float> weights(const std::string& tensor, int64_t rows, int64_t cols) const {
    std::mt19937 random(seed ^ static_cast<uint32_t>(std::hash<std::string>{}(tensor)));
    const bool is_norm = tensor.find("norm") != std::string::npos;
    const double spread = is_norm ? 0.2 : tensor.find("bias") != std::string::npos ? 0.5 : 1.4 / std::sqrt(double(cols));
    std::normal_distribution<double> normal(is_norm ? 1.0 : 0.0, spread);
    std::vector<float> values(static_cast<size_t>(rows * cols));
    for (float& v : values) v = static_cast<float>(std::round(normal(random) * 512) / 512);
    return values;
  }

  struct Tensor {
    std::string name;
    int64_t rows, cols;  // cols = 0: a vector
  };
  std::vector<Tensor> tensors() const {
    std::vector<Tensor> all = {{"token_embd.weight", vocab(), hidden}, {"output_norm.weight", hidden, 0}};
    if (!tied) all.push_back({"output.weight", vocab(), hidden});
    for (int l = 0; l < layers; ++l) {
      const std::string blk = "blk." + std::to_string(l) + ".";
      const int q = heads * head_dim, kv = kv_heads * head_dim;
      all.insert(all.end(), {{blk + "attn_norm.weight", hidden, 0},
                             {blk + "ffn_norm.weight", hidden, 0},
                             {blk + "attn_q.weight", q, hidden},
                             {blk + "attn_k.weight", kv, hidden},
                             {blk + "attn_v.weight", kv, hidden},
                             {blk + "attn_output.weight", hidden, q},
                             {blk + "ffn_gate.weight", intermediate, hidden},
                             {blk + "ffn_up.weight", intermediate, hidden},
                             {blk + "ffn_down.weight", hidden, intermediate}});
      if (has_bias())
        all.insert(all.end(),
                   {{blk + "attn_q.bias", q, 0}, {blk + "attn_k.bias", kv, 0}, {blk + "attn_v.bias", kv, 0}});
    }
    return all;
  }

  /// `change` may alter the file's numbers: {"llama.block_count", 0} and so on.
  GgufBuilder gguf(const std::map<std::string, double>& change = {}) const {
    GgufBuilder file;
    file.text("general.architecture", architecture).text("general.name", name);
    const auto integer = [&](const std::string& key, double value) {
      const auto changed = change.find(key);
      file.number(architecture + "." + key, GgufBuilder::u32,
                  static_cast<uint32_t>(changed == change.end() ? value : changed->second));
    };
    const auto number = [&](const std::string& key, double value) {
      const auto changed = change.find(key);
      file.number(architecture + "." + key, GgufBuilder::f32,
                  static_cast<float>(changed == change.end() ? value : changed->second));
    };
    integer("block_count", layers);
    integer("context_length", context);
    integer("embedding_length", hidden);
    integer("feed_forward_length", intermediate);
    integer("attention.head_count", heads);
    integer("attention.head_count_kv", kv_heads);
    integer("attention.key_length", head_dim);
    integer("attention.value_length", head_dim);
    integer("rope.dimension_count", head_dim);
    number("rope.freq_base", theta);
    number("attention.layer_norm_rms_epsilon", eps);

    const SmallVocabulary words = vocabulary();
    const engine::TokenizerData data = words.data();
    file.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", data.pre);
    file.texts("tokenizer.ggml.tokens", {data.tokens.begin(), data.tokens.end()});
    file.texts("tokenizer.ggml.merges", {data.merges.begin(), data.merges.end()});
    std::vector<int32_t> types;
    for (const auto type : data.types) types.push_back(static_cast<int32_t>(type));
    file.numbers("tokenizer.ggml.token_type", GgufBuilder::i32, types);
    const auto end = std::find(data.tokens.begin(), data.tokens.end(), "<|im_end|>") - data.tokens.begin();
    file.number("tokenizer.ggml.eos_token_id", GgufBuilder::u32, static_cast<uint32_t>(end));
    file.text("tokenizer.chat_template", "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n");

    for (const Tensor& t : tensors()) {
      const std::vector<float> values = weights(t.name, t.rows, t.cols ? t.cols : 1);
      const std::string_view bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
      std::vector<uint64_t> dims = {static_cast<uint64_t>(t.rows)};
      if (t.cols) dims.insert(dims.begin(), static_cast<uint64_t>(t.cols));
      file.tensor(t.name, 0, dims, bytes);
    }
    if (!rope_divisors.empty())
      file.tensor("rope_freqs.weight", 0, {rope_divisors.size()},
                  {reinterpret_cast<const char*>(rope_divisors.data()), rope_divisors.size() * sizeof(float)});
    return file;
  }

  /// Logits of every position of `tokens`, [tokens][vocab].
  std::vector<std::vector<double>> logits(const std::vector<int32_t>& tokens) const;
};

/// y = W x
inline std::vector<double> times(const std::vector<float>& w, const std::vector<double>& x) {
  std::vector<double> y(w.size() / x.size());
  for (size_t n = 0; n < y.size(); ++n)
    for (size_t k = 0; k < x.size(); ++k) y[n] += double(w[n * x.size() + k]) * x[k];
  return y;
}

inline std::vector<std::vector<double>> SmallModel::logits(const std::vector<int32_t>& tokens) const {
  const size_t count = tokens.size();
  const auto normed = [&](const std::vector<double>& x, const std::string& weight) {
    double squares = 0;
    for (const double v : x) squares += v * v;
    const double scale = 1 / std::sqrt(squares / double(x.size()) + eps);
    const std::vector<float> w = weights(weight, hidden, 1);
    std::vector<double> y(x.size());
    for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * w[i];
    return y;
  };
  const auto add = [](std::vector<double>& x, const std::vector<double>& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  };
  const auto rotate = [&](std::vector<double>& x, size_t position) {
    for (size_t head = 0; head < x.size(); head += head_dim)
      for (int i = 0; i < head_dim / 2; ++i) {
        double angle = double(position) * std::pow(theta, -2.0 * i / head_dim);
        if (!rope_divisors.empty()) angle /= rope_divisors[i];
        const size_t a = head + (architecture == "qwen2" ? i : 2 * i);
        const size_t b = architecture == "qwen2" ? a + head_dim / 2 : a + 1;
        const double xa = x[a], xb = x[b];
        x[a] = xa * std::cos(angle) - xb * std::sin(angle);
        x[b] = xa * std::sin(angle) + xb * std::cos(angle);
      }
  };

  const std::vector<float> embedding = weights("token_embd.weight", vocab(), hidden);
  std::vector<std::vector<double>> h(count);
  for (size_t t = 0; t < count; ++t)
    h[t].assign(embedding.begin() + tokens[t] * hidden, embedding.begin() + (tokens[t] + 1) * hidden);
  for (int l = 0; l < layers; ++l) {
    const std::string blk = "blk." + std::to_string(l) + ".";
    const int q_rows = heads * head_dim, kv_rows = kv_heads * head_dim;
    std::vector<std::vector<double>> q(count), k(count), v(count);
    for (size_t t = 0; t < count; ++t) {
      const std::vector<double> x = normed(h[t], blk + "attn_norm.weight");
      q[t] = times(weights(blk + "attn_q.weight", q_rows, hidden), x);
      k[t] = times(weights(blk + "attn_k.weight", kv_rows, hidden), x);
      v[t] = times(weights(blk + "attn_v.weight", kv_rows, hidden), x);
      if (has_bias()) {
        const auto bias = [&](const char* which, int rows) {
          const std::vector<float> b = weights(blk + which + ".bias", rows, 1);
          return std::vector<double>(b.begin(), b.end());
        };
        add(q[t], bias("attn_q", q_rows));
        add(k[t], bias("attn_k", kv_rows));
        add(v[t], bias("attn_v", kv_rows));
      }
      rotate(q[t], t);
      rotate(k[t], t);
    }
    for (size_t t = 0; t < count; ++t) {
      std::vector<double> o(static_cast<size_t>(q_rows));
      for (int head = 0; head < heads; ++head) {
        const int kv = head / (heads / kv_heads) * head_dim, qo = head * head_dim;
        std::vector<double> p(t + 1);
        double sum = 0;
        for (size_t j = 0; j <= t; ++j) {
          double s = 0;
          for (int d = 0; d < head_dim; ++d) s += q[t][qo + d] * k[j][kv + d];
          sum += p[j] = std::exp(s / std::sqrt(double(head_dim)));
        }
        for (size_t j = 0; j <= t; ++j)
          for (int d = 0; d < head_dim; ++d) o[qo + d] += p[j] / sum * v[j][kv + d];
      }
      add(h[t], times(weights(blk + "attn_output.weight", hidden, q_rows), o));
      const std::vector<double> x = normed(h[t], blk + "ffn_norm.weight");
      std::vector<double> gate = times(weights(blk + "ffn_gate.weight", intermediate, hidden), x);
      const std::vector<double> up = times(weights(blk + "ffn_up.weight", intermediate, hidden), x);
      for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      add(h[t], times(weights(blk + "ffn_down.weight", hidden, intermediate), gate));
    }
  }
  std::vector<std::vector<double>> out;
  for (size_t t = 0; t < count; ++t)
    out.push_back(times(tied ? embedding : weights("output.weight", vocab(), hidden), normed(h[t], "output_norm.weight")));
  return out;
}

/// A file that goes away with the object.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& content, const std::string& suffix = "") {
    std::string path = std::filesystem::temp_directory_path() / ("fulmen-test-XXXXXX" + suffix);
    const int fd = mkstemps(path.data(), static_cast<int>(suffix.size()));
    close(fd);
    path_ = path;
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TemporaryFile() { std::remove(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace fulmen::test
