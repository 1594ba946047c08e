#include "engine/cpu_executor.hpp"

#include "engine/dequantize.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

namespace fulmen::engine {
namespace {

Context make_context(Pool& pool) {
  auto options = make<fulmen_context_options>();
  options.device_type = FULMEN_CPU;
  options.num_threads = pool.num_threads();
  options.parallel_for = &Pool::fulmen_callback;
  options.parallel_user = &pool;
  return Context(options);
}

/// Adds the time of its scope to one part.
class Timed {
 public:
  Timed(PartSeconds& seconds, Part part) : seconds_(seconds[static_cast<size_t>(part)]), start_(Clock::now()) {}
  ~Timed() { seconds_ += std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  double& seconds_;
  Clock::time_point start_;
};

std::vector<float> read_vector(const GgufFile& file, const std::string& name) {
  const GgufTensor tensor = file.tensor(name);
  std::vector<float> values(static_cast<size_t>(tensor.row_elements()));
  dequantize_to_float(tensor, 0, 1, values.data());
  return values;
}

/// One matrix of the rows of several tensors, one below the other.
PackedMatrix read_matrix(const GgufFile& file, Pool& pool, std::initializer_list<std::string> names) {
  std::vector<GgufTensor> tensors;
  int64_t rows = 0;
  for (const std::string& name : names) {
    tensors.push_back(file.tensor(name));
    rows += tensors.back().num_rows();
  }
  PackedMatrix matrix(rows, tensors[0].row_elements());
  matrix.fill(pool, [&](int64_t row, float* out) {
    size_t t = 0;
    for (; row >= tensors[t].num_rows(); ++t) row -= tensors[t].num_rows();
    dequantize_to_float(tensors[t], row, 1, out);
  });
  return matrix;
}

}  // namespace

CpuExecutor::CpuExecutor(const ModelConfig& config, const GgufFile& file, Pool& pool, const ExecutorLimits& limits)
    : config_(config), limits_(limits), pool_(pool), context_(make_context(pool)) {
  load(file);
  rope_table_ = rope_table(config_, limits_.max_context);

  make_attention();
  kv_cache_ = Buffer(static_cast<size_t>(config_.kv_bytes_per_token(kv_element_bytes()) * limits_.page_size *
                                         limits_.num_pages));
  description_ = fmt::format("cpu, {} thread{}, {}", pool_.num_threads(), pool_.num_threads() == 1 ? "" : "s",
                             simd_target());
}

void CpuExecutor::make_attention() {
  auto spec = make<fulmen_attention_spec>();
  spec.q_dtype = spec.kv_dtype = limits_.kv_dtype;
  spec.o_dtype = FULMEN_F32;
  spec.head_dim_qk = spec.head_dim_vo = static_cast<int32_t>(config_.head_dim);
  spec.batch_invariant = 1;  // costs nothing on the CPU
  auto bounds = make<fulmen_attention_limits>();
  bounds.max_requests = limits_.max_requests;
  bounds.max_rows = limits_.max_rows;
  bounds.max_kv_len = limits_.max_context;
  bounds.num_groups = 1;
  bounds.groups[0] = make<fulmen_attention_group>();
  bounds.groups[0].num_qo_heads = static_cast<int32_t>(config_.num_heads);
  bounds.groups[0].num_kv_heads = static_cast<int32_t>(config_.num_kv_heads);
  bounds.groups[0].causal = 1;
  bounds.groups[0].window_left = -1;
  bounds.num_levels = 1;
  attention_.emplace(context_, spec, bounds);
  bounds.num_levels = 2;
  shared_attention_.emplace(context_, spec, bounds);
  const fulmen_attention_sizes one = attention_->sizes(), two = shared_attention_->sizes();
  plan_ = Buffer(std::max(one.plan_bytes, two.plan_bytes));
  scratch_ = Buffer(std::max(one.scratch_bytes, two.scratch_bytes));
  context_.scratch_init(scratch_.as<>(), scratch_.bytes());
}

void CpuExecutor::load(const GgufFile& file) {
  embedding_ = read_matrix(file, pool_, {"token_embd.weight"});
  if (!config_.tied_embeddings) head_ = read_matrix(file, pool_, {"output.weight"});
  final_norm_ = read_vector(file, "output_norm.weight");
  layers_.resize(static_cast<size_t>(config_.num_layers));
  for (size_t i = 0; i < layers_.size(); ++i) {
    const std::string blk = fmt::format("blk.{}.", i);
    Layer& layer = layers_[i];
    layer.attention_norm = read_vector(file, blk + "attn_norm.weight");
    layer.mlp_norm = read_vector(file, blk + "ffn_norm.weight");
    layer.qkv = read_matrix(file, pool_, {blk + "attn_q.weight", blk + "attn_k.weight", blk + "attn_v.weight"});
    layer.output = read_matrix(file, pool_, {blk + "attn_output.weight"});
    layer.gate_up = read_matrix(file, pool_, {blk + "ffn_gate.weight", blk + "ffn_up.weight"});
    layer.down = read_matrix(file, pool_, {blk + "ffn_down.weight"});
    if (config_.qkv_bias)
      for (const char* name : {"attn_q.bias", "attn_k.bias", "attn_v.bias"}) {
        const std::vector<float> bias = read_vector(file, blk + name);
        layer.qkv_bias.insert(layer.qkv_bias.end(), bias.begin(), bias.end());
      }
  }
}

int64_t CpuExecutor::weight_bytes() const {
  size_t bytes = config_.tied_embeddings ? embedding_.bytes() : head_.bytes();
  for (const Layer& l : layers_) bytes += l.qkv.bytes() + l.output.bytes() + l.gate_up.bytes() + l.down.bytes();
  return static_cast<int64_t>(bytes);
}

int64_t CpuExecutor::kv_bytes_per_token() const { return config_.kv_bytes_per_token(kv_element_bytes()); }

void CpuExecutor::reserve_rows(int64_t rows) {
  const auto fit = [rows](auto& buffer, int64_t width) { buffer.resize(static_cast<size_t>(rows * width)); };
  fit(residual_, config_.hidden);
  fit(x_, config_.hidden);
  fit(qkv_, config_.qkv_rows());
  if (limits_.kv_dtype != FULMEN_F32) fit(qkv_half_, config_.qkv_rows());
  fit(attended_, config_.num_heads * config_.head_dim);
  fit(gate_up_, 2 * config_.intermediate);
  fit(activated_, config_.intermediate);
}

namespace {

template <class T>
fulmen_tensor vector_of(std::span<const T> values) {
  return tensor(values.data(), {static_cast<int64_t>(values.size())});
}

fulmen_kv_table pages_of(std::span<const int32_t> pages, std::span<const int32_t> indptr) {
  auto table = make<fulmen_kv_table>();
  table.table = vector_of(pages);
  table.indptr = vector_of(indptr);
  return table;
}

}  // namespace

void CpuExecutor::plan(const Step& step) {
  const Timed timed(seconds_, Part::kAttention);
  auto lengths = make<fulmen_attention_lengths>();
  const auto add_level = [&](std::span<const int32_t> qo_indptr, std::span<const int32_t> kv_len) {
    fulmen_attention_level& level = lengths.levels[lengths.num_levels++];
    level = make<fulmen_attention_level>();
    level.qo_indptr = vector_of(qo_indptr);
    level.kv_len = vector_of(kv_len);
  };
  if (!step.shared_kv_len.empty()) add_level(step.shared_qo_indptr, step.shared_kv_len);
  add_level(step.qo_indptr, step.kv_len);
  (step.shared_kv_len.empty() ? attention_ : shared_attention_)->plan(lengths, plan_.as<>());
}

void CpuExecutor::run(const Step& step, std::span<int32_t> next_tokens) {
  const int64_t rows = static_cast<int64_t>(step.tokens.size());
  reserve_rows(rows);
  plan(step);
  // x is what the next block adds to the residual stream; the norm before a block does the adding.
  embed(step);
  for (size_t i = 0; i < layers_.size(); ++i) {
    attention_block(layers_[i], static_cast<int64_t>(i), step);
    mlp_block(layers_[i], rows);
  }
  sample(step, next_tokens);
}

void CpuExecutor::embed(const Step& step) {
  const Timed timed(seconds_, Part::kEmbedding);
  std::fill(residual_.begin(), residual_.end(), 0.0f);
  pool_.parallel_for(static_cast<int64_t>(step.tokens.size()), [&](int64_t r) {
    embedding_.read_row(step.tokens[static_cast<size_t>(r)], x_.data() + r * config_.hidden);
  });
}

void CpuExecutor::norm(const float* x, int64_t rows, const std::vector<float>& weight, float* residual, float* out) {
  const Timed timed(seconds_, Part::kNorm);
  auto args = make<fulmen_rms_norm_args>();
  args.x = tensor(x, {rows, config_.hidden});
  args.out = tensor(out, {rows, config_.hidden});
  args.weight = tensor(weight.data(), {config_.hidden});
  args.residual = tensor(residual, {rows, config_.hidden});
  args.eps = static_cast<float>(config_.norm_eps);
  rms_norm(context_, args);
}

void CpuExecutor::multiply(const PackedMatrix& weights, const float* x, int64_t rows, const std::vector<float>& bias,
                           float* out) {
  const Timed timed(seconds_, Part::kMatmul);
  matmul(pool_, weights, x, rows, weights.cols(), bias.empty() ? nullptr : bias.data(), out, weights.rows(),
         matmul_scratch_);
}

// All layers of a page lie together, so that memory is touched page by page as requests need it.
fulmen_tensor CpuExecutor::cache(int64_t layer, int64_t k_or_v) const {
  const int64_t heads = config_.num_kv_heads, dim = config_.head_dim, size = limits_.page_size;
  const int64_t layer_elements = size * heads * dim;
  char* data = kv_cache_.as<char>() + (2 * layer + k_or_v) * layer_elements * kv_element_bytes();
  return tensor(data, limits_.kv_dtype, {limits_.num_pages, size, heads, dim},
                {2 * config_.num_layers * layer_elements, heads * dim, dim, 1});
}

void CpuExecutor::attention_block(const Layer& layer, int64_t index, const Step& step) {
  const int64_t rows = static_cast<int64_t>(step.tokens.size());
  const int64_t dim = config_.head_dim, row = config_.qkv_rows();
  const int64_t k_at = config_.num_heads * dim, v_at = k_at + config_.num_kv_heads * dim;

  norm(x_.data(), rows, layer.attention_norm, residual_.data(), x_.data());
  multiply(layer.qkv, x_.data(), rows, layer.qkv_bias, qkv_.data());
  {
    const Timed timed(seconds_, Part::kRope);
    auto args = make<fulmen_rope_args>();
    args.q = tensor(qkv_.data(), {rows, config_.num_heads, dim}, {row, dim, 1});
    args.k = tensor(qkv_.data() + k_at, {rows, config_.num_kv_heads, dim}, {row, dim, 1});
    args.positions = tensor(step.positions.data(), {rows});
    args.cos_sin_cache = tensor(rope_table_.data(), {limits_.max_context, config_.rotary_dim});
    args.params = make<fulmen_rope_params>();
    args.params.rotary_dim = static_cast<int32_t>(config_.rotary_dim);
    args.params.interleaved = config_.rope_interleaved;
    rope(context_, args);
  }
  const char* qkv = reinterpret_cast<const char*>(qkv_.data());
  {
    const Timed timed(seconds_, Part::kAppend);
    if (limits_.kv_dtype != FULMEN_F32) {
      const auto convert = limits_.kv_dtype == FULMEN_F16 ? &convert_to_f16 : &convert_to_bf16;
      const auto convert_row = [&](int64_t r) { convert(qkv_.data() + r * row, row, qkv_half_.data() + r * row); };
      if (rows < 16) {
        for (int64_t r = 0; r < rows; ++r) convert_row(r);
      } else {
        pool_.parallel_for(rows, convert_row);
      }
      qkv = reinterpret_cast<const char*>(qkv_half_.data());
    }
    auto args = make<fulmen_append_kv_args>();
    args.k = tensor(qkv + k_at * kv_element_bytes(), limits_.kv_dtype, {rows, config_.num_kv_heads, dim}, {row, dim, 1});
    args.v = tensor(qkv + v_at * kv_element_bytes(), limits_.kv_dtype, {rows, config_.num_kv_heads, dim}, {row, dim, 1});
    args.k_cache = cache(index, 0);
    args.v_cache = cache(index, 1);
    args.slot_mapping = tensor(step.slots.data(), {rows});
    append_kv(context_, args);
  }
  {
    const Timed timed(seconds_, Part::kAttention);
    auto args = make<fulmen_attention_tensors>();
    args.page_size = static_cast<int32_t>(limits_.page_size);
    args.q = tensor(qkv, limits_.kv_dtype, {rows, config_.num_heads, dim}, {row, dim, 1});
    args.k = cache(index, 0);
    args.v = cache(index, 1);
    args.o = tensor(attended_.data(), {rows, config_.num_heads, dim});
    if (step.shared_kv_len.empty()) {
      args.kv[0] = pages_of(step.pages, step.page_indptr);
      attention_->run(args, plan_.as<>(), scratch_.as<>());
    } else {
      args.kv[0] = pages_of(step.shared_pages, step.shared_page_indptr);
      args.kv[1] = pages_of(step.pages, step.page_indptr);
      shared_attention_->run(args, plan_.as<>(), scratch_.as<>());
    }
  }
  multiply(layer.output, attended_.data(), rows, {}, x_.data());
}

void CpuExecutor::mlp_block(const Layer& layer, int64_t rows) {
  norm(x_.data(), rows, layer.mlp_norm, residual_.data(), x_.data());
  multiply(layer.gate_up, x_.data(), rows, {}, gate_up_.data());
  {
    const Timed timed(seconds_, Part::kActivation);
    auto args = make<fulmen_act_and_mul_args>();
    args.x = tensor(gate_up_.data(), {rows, 2 * config_.intermediate});
    args.out = tensor(activated_.data(), {rows, config_.intermediate});
    args.activation = FULMEN_SILU;
    act_and_mul(context_, args);
  }
  multiply(layer.down, activated_.data(), rows, {}, x_.data());
}

void CpuExecutor::sample(const Step& step, std::span<int32_t> next_tokens) {
  const int64_t rows = static_cast<int64_t>(step.sample_rows.size()), hidden = config_.hidden;
  logits_.resize(static_cast<size_t>(rows * config_.vocab));
  if (rows == 0) return;
  // Only the rows that sample go through the last norm and the head; they move to the front, in rising order.
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t from = step.sample_rows[static_cast<size_t>(i)];
    std::copy_n(x_.data() + from * hidden, hidden, x_.data() + i * hidden);
    std::copy_n(residual_.data() + from * hidden, hidden, residual_.data() + i * hidden);
  }
  norm(x_.data(), rows, final_norm_, residual_.data(), x_.data());
  multiply(config_.tied_embeddings ? embedding_ : head_, x_.data(), rows, {}, logits_.data());

  const Timed timed(seconds_, Part::kSampling);
  std::vector<float> temperatures, top_ps, min_ps;
  std::vector<int32_t> top_ks;
  std::vector<uint64_t> seeds, offsets;
  for (int64_t i = 0; i < rows; ++i) {
    const Sampling& s = step.sampling[static_cast<size_t>(i)];
    temperatures.push_back(s.temperature);
    top_ks.push_back(s.top_k);
    top_ps.push_back(s.top_p);
    min_ps.push_back(s.min_p);
    seeds.push_back(s.seed);
    // The position decides the draw: a request that is computed again draws the same words.
    offsets.push_back(static_cast<uint64_t>(step.positions[static_cast<size_t>(step.sample_rows[i])]));
  }
  auto args = make<fulmen_sample_args>();
  args.input = tensor(logits_.data(), {rows, config_.vocab});
  args.filter = make<fulmen_filter_params>();
  args.filter.temperatures = tensor(temperatures.data(), {rows});
  args.filter.top_ks = tensor(top_ks.data(), {rows});
  args.filter.top_ps = tensor(top_ps.data(), {rows});
  args.filter.min_ps = tensor(min_ps.data(), {rows});
  args.seeds = tensor(seeds.data(), {rows});
  args.offsets = tensor(offsets.data(), {rows});
  args.tokens = tensor(next_tokens.data(), {rows});
  fulmen::sample(context_, args);
}

}  // namespace fulmen::engine
