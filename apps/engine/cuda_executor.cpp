#include "engine/cuda_executor.hpp"

#include "engine/dequantize.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <utility>

namespace fulmen::engine {
namespace {

constexpr int64_t kPinnedRows = 64;     // of a product in invariant mode
constexpr int64_t kFewRows = 16;        // what fulmen_linear takes
constexpr int64_t kProfiledStep = 4;    // of the steps that replay the graph
constexpr int64_t kPricedStep = 5;      // in invariant mode

int64_t pages_of_a_request(const ExecutorLimits& limits) {
  return (limits.max_context + limits.page_size - 1) / limits.page_size;
}

std::vector<float> read_vector(const GgufFile& file, const std::string& name) {
  const GgufTensor tensor = file.tensor(name);
  std::vector<float> values(static_cast<size_t>(tensor.row_elements()));
  dequantize_to_float(tensor, 0, 1, values.data());
  return values;
}

template <class T>
cuda::Memory upload(const std::vector<T>& values) {
  cuda::Memory memory(values.size() * sizeof(T));
  memory.upload(values.data(), values.size() * sizeof(T));
  return memory;
}

fulmen_dtype checked_dtype(fulmen_dtype dtype) {
  if (dtype == FULMEN_F32) throw cuda::Unavailable("--kv-type f32 is for the CPU; the GPU has f16 and bf16");
  return dtype;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

CudaExecutor::CudaExecutor(const ModelConfig& config, const GgufFile& file, Pool& pool, const ExecutorLimits& limits,
                           bool invariant)
    : config_(config),
      limits_(limits),
      dtype_(checked_dtype(limits.kv_dtype)),
      pinned_rows_(invariant ? kPinnedRows : 0),
      fuses_decode_(!invariant && can_fuse()),
      specs_(config, limits, invariant),
      device_(0),
      cublas_(device_.driver_major()),
      context_(Context::cuda(0)),
      layout_(limits.max_rows, limits.max_requests, limits.max_requests * pages_of_a_request(limits)),
      pinned_step_(layout_.bytes()),
      pinned_tokens_(static_cast<size_t>(limits.max_requests) * 4) {
  // Asks before gigabytes are uploaded.
  context_.prepare(specs_.all());
  mixed_ = make_attention(specs_.mixed);
  decode_ = make_attention(specs_.decode);
  gather_ = make_attention(specs_.gather);
  load(file, pool);
  rope_table_ = upload(rope_table(config_, limits_.max_context));
  kv_cache_ = cuda::Memory(static_cast<size_t>(kv_bytes_per_token() * limits_.page_size * limits_.num_pages));

  const size_t rows = static_cast<size_t>((limits_.max_rows + kPinnedRows - 1) / kPinnedRows * kPinnedRows);
  const size_t requests = static_cast<size_t>((limits_.max_requests + kPinnedRows - 1) / kPinnedRows * kPinnedRows);
  const auto activations = [&](int64_t width) { return cuda::Memory(rows * static_cast<size_t>(width) * 2); };
  residual_ = activations(config_.hidden);
  x_ = activations(config_.hidden);
  zeros_ = activations(config_.hidden);
  qkv_ = activations(config_.qkv_rows());
  attended_ = activations(config_.num_heads * config_.head_dim);
  gate_up_ = activations(2 * config_.intermediate);
  activated_ = activations(config_.intermediate);
  logits_ = cuda::Memory(requests * static_cast<size_t>(config_.vocab) * 4);
  step_block_ = cuda::Memory(layout_.bytes());
  next_tokens_ = cuda::Memory(requests * 4);
  std::vector<int32_t> numbers(rows + 1);
  std::iota(numbers.begin(), numbers.end(), 0);
  row_numbers_ = upload(numbers);
  ones_ = upload(std::vector<int32_t>(rows, 1));

  // A step without requests, then the same one as a graph: all that can fail fails here.
  layout_.fill(pinned_step_.data(), Step{.qo_indptr = std::span(numbers).first(1)}, limits_.max_requests,
               limits_.max_requests, true);
  step_block_.upload(pinned_step_.data(), layout_.bytes());
  issue({limits_.max_requests, limits_.max_requests, limits_.max_requests, true});
  stream_.synchronize();
  capture(graph_, false);
  capture(profile_graph_, true);
  if (invariant) capture_free();
  graph_.launch(stream_);
  stream_.synchronize();
  description_ = fmt::format("{}, cuBLASLt {}{}", device_.name(), cublas_.version(),
                             invariant ? fmt::format(", products of {} rows by one algorithm", kPinnedRows) : "");
}

CudaExecutor::~CudaExecutor() = default;

bool CudaExecutor::can_fuse() const {
  return limits_.max_requests <= kFewRows && config_.hidden % 8 == 0 && config_.intermediate % 8 == 0;
}

CudaExecutor::Planned CudaExecutor::make_attention(const KernelSpecs::OneAttention& one) const {
  Planned planned;
  planned.attention.emplace(context_, one.spec, one.limits);
  const fulmen_attention_sizes sizes = planned.attention->sizes();
  planned.plan = cuda::Memory(sizes.plan_bytes);
  planned.scratch = cuda::Memory(sizes.scratch_bytes);
  check(fulmen_scratch_init(context_.get(), planned.scratch.at(), sizes.scratch_bytes, stream_.get()));
  return planned;
}

// ------------------------------------------------------------------------------------------------ weights

CudaExecutor::Matrix CudaExecutor::upload_matrix(const GgufFile& file, Pool& pool, std::initializer_list<std::string> names,
                                                 const std::vector<float>* columns) {
  Matrix matrix;
  std::vector<GgufTensor> tensors;
  for (const std::string& name : names) {
    tensors.push_back(file.tensor(name));
    matrix.rows += tensors.back().num_rows();
  }
  matrix.cols = tensors[0].row_elements();
  std::vector<uint16_t> values(static_cast<size_t>(matrix.rows * matrix.cols));
  uint16_t* out = values.data();
  for (const GgufTensor& tensor : tensors) {
    pool.parallel_for(tensor.num_rows(), [&](int64_t row) {
      std::vector<float> exact(static_cast<size_t>(matrix.cols));
      dequantize_to_float(tensor, row, 1, exact.data());
      for (size_t i = 0; columns && i < exact.size(); ++i) exact[i] *= (*columns)[i];
      (dtype_ == FULMEN_F16 ? convert_to_f16 : convert_to_bf16)(exact.data(), matrix.cols, out + row * matrix.cols);
    });
    out += tensor.num_rows() * matrix.cols;
  }
  matrix.data = upload(values);
  return matrix;
}

void CudaExecutor::load(const GgufFile& file, Pool& pool) {
  embedding_ = upload_matrix(file, pool, {"token_embd.weight"});
  if (!config_.tied_embeddings) head_ = upload_matrix(file, pool, {"output.weight"});
  final_norm_ = upload(read_vector(file, "output_norm.weight"));
  float_ones_ = upload(std::vector<float>(static_cast<size_t>(config_.hidden), 1.0f));
  weight_bytes_ = static_cast<int64_t>((config_.tied_embeddings ? embedding_ : head_).data.bytes());
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const std::string blk = fmt::format("blk.{}.", i);
    Layer& layer = layers_.emplace_back();
    // A norm's weight is a factor of the columns of the matrix that reads it, before these are rounded.
    const std::vector<float> attention_norm = read_vector(file, blk + "attn_norm.weight");
    const std::vector<float> mlp_norm = read_vector(file, blk + "ffn_norm.weight");
    layer.qkv = upload_matrix(file, pool, {blk + "attn_q.weight", blk + "attn_k.weight", blk + "attn_v.weight"}, &attention_norm);
    layer.output = upload_matrix(file, pool, {blk + "attn_output.weight"});
    layer.gate_up = upload_matrix(file, pool, {blk + "ffn_gate.weight", blk + "ffn_up.weight"}, &mlp_norm);
    layer.down = upload_matrix(file, pool, {blk + "ffn_down.weight"});
    for (const Matrix* m : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down})
      weight_bytes_ += static_cast<int64_t>(m->data.bytes());
    if (!config_.qkv_bias) continue;
    std::vector<uint16_t> biases;
    for (const char* name : {"attn_q.bias", "attn_k.bias", "attn_v.bias"}) {
      const GgufTensor tensor = file.tensor(blk + name);
      std::vector<float> exact(static_cast<size_t>(tensor.row_elements()));
      dequantize_to_float(tensor, 0, 1, exact.data());
      const size_t at = biases.size();
      biases.resize(at + exact.size());
      (dtype_ == FULMEN_F16 ? convert_to_f16 : convert_to_bf16)(exact.data(), tensor.row_elements(), biases.data() + at);
    }
    layer.qkv_bias = upload(biases);
  }
}

// ------------------------------------------------------------------------------------------------ a step

void CudaExecutor::run(const Step& step, std::span<int32_t> next_tokens) {
  const double start = now();
  device_.make_current();
  const int64_t rows = static_cast<int64_t>(step.tokens.size()), requests = static_cast<int64_t>(step.kv_len.size());
  last_sample_rows_.assign(step.sample_rows.begin(), step.sample_rows.end());
  const bool decodes = rows == requests;
  const int64_t most = limits_.max_requests;
  const size_t bytes = decodes ? layout_.fill(pinned_step_.data(), step, most, most, true)
                               : layout_.fill(pinned_step_.data(), step, rows, requests, false);
  cuda::check(cuda::Driver::get().copy_up_async(step_block_.address(), pinned_step_.data(), bytes, stream_.get()),
              "copy_up_async");
  const int64_t bytes_before = bytes_from_device(!decodes);
  const bool profiles = decodes && decode_steps_ == kProfiledStep;
  const int64_t down = decodes ? most : static_cast<int64_t>(step.sample_rows.size());
  if (decodes && decode_steps_ == kPricedStep && !free_graph_.empty()) {
    measure_price();
  } else if (decodes) {
    (profiles ? profile_graph_ : graph_).launch(stream_);
  } else {
    issue({rows, requests, down, false});
  }
  ++steps_;
  bytes_between_layers_ += bytes_from_device(!decodes) - bytes_before;
  bytes_of_tokens_ += down * 4;
  if (down > 0)
    cuda::check(cuda::Driver::get().copy_down_async(pinned_tokens_.data(), next_tokens_.address(),
                                                    static_cast<size_t>(down) * 4, stream_.get()),
                "copy_down_async");
  stream_.synchronize();
  const int32_t* made = reinterpret_cast<const int32_t*>(pinned_tokens_.data());
  if (!decodes) std::iota(last_sample_rows_.begin(), last_sample_rows_.end(), 0);
  for (size_t i = 0; i < next_tokens.size(); ++i) next_tokens[i] = made[last_sample_rows_[i]];

  if (!decodes) return;
  ++decode_steps_;
  if (profiles) return read_marks();
  if (decode_steps_ == kPricedStep + 1 && !free_graph_.empty()) return;
  const int32_t* lengths = reinterpret_cast<const int32_t*>(pinned_step_.data() + layout_.kv_len);
  decode_seconds_ += now() - start;
  decode_bytes_ += static_cast<double>(weight_bytes_ + std::accumulate(lengths, lengths + requests, int64_t{0}) *
                                                           kv_bytes_per_token());
}

std::span<const float> CudaExecutor::logits() {
  host_logits_.resize(last_sample_rows_.size() * static_cast<size_t>(config_.vocab));
  const size_t row = static_cast<size_t>(config_.vocab) * 4;
  for (size_t i = 0; i < last_sample_rows_.size(); ++i)
    cuda::check(cuda::Driver::get().copy_down(host_logits_.data() + i * static_cast<size_t>(config_.vocab),
                                              logits_.address() + static_cast<size_t>(last_sample_rows_[i]) * row, row),
                "copy_down");
  return host_logits_;
}

void CudaExecutor::capture(cuda::Graph& graph, bool with_events) {
  marking_ = with_events;
  graph.capture(stream_, [this] {
    issue({limits_.max_requests, limits_.max_requests, limits_.max_requests, true});
    mark(Part::kCount);
  });
  marking_ = false;
}

// The decode step as it would be without invariance, to be timed beside the one that runs.
void CudaExecutor::capture_free() {
  KernelSpecs::OneAttention decode = specs_.decode;
  decode.spec.batch_invariant = 0;
  free_decode_ = make_attention(decode);
  stream_.synchronize();
  const int64_t pinned = std::exchange(pinned_rows_, 0);
  fuses_decode_ = can_fuse();
  std::swap(decode_, free_decode_);
  const Shape shape{limits_.max_requests, limits_.max_requests, limits_.max_requests, true};
  issue(shape);
  stream_.synchronize();
  capture(free_graph_, false);
  std::swap(decode_, free_decode_);
  fuses_decode_ = false;
  pinned_rows_ = pinned;
}

// Both graphs on the same step, twice, the second time timed. The one that runs has the last word in cache and tokens.
void CudaExecutor::measure_price() {
  cuda::Event begin, middle, end;
  free_graph_.launch(stream_);
  graph_.launch(stream_);
  begin.record(stream_, false);
  free_graph_.launch(stream_);
  middle.record(stream_, false);
  graph_.launch(stream_);
  end.record(stream_, false);
  stream_.synchronize();
  free_step_seconds_ = middle.seconds_since(begin);
  invariant_step_seconds_ = end.seconds_since(middle);
}

void CudaExecutor::mark(Part part) {
  if (!marking_) return;
  marks_.emplace_back(cuda::Event(), part);
  marks_.back().first.record(stream_, true);
}

void CudaExecutor::read_marks() {
  for (size_t i = 0; i + 1 < marks_.size(); ++i)
    seconds_[static_cast<size_t>(marks_[i].second)] += marks_[i + 1].first.seconds_since(marks_[i].first);
}

std::string CudaExecutor::step_summary() const {
  const int64_t steps = decode_steps_ - (decode_steps_ > kProfiledStep ? 1 : 0) - (invariant_step_seconds_ > 0 ? 1 : 0);
  if (steps == 0 || device_.bandwidth() == 0) return {};
  const double each = decode_seconds_ / static_cast<double>(steps);
  const double floor = decode_bytes_ / static_cast<double>(steps) / device_.bandwidth();
  std::string text =
      fmt::format("{:.0f} us for a decode step, {:.1f} times the {:.0f} us that reading {:.0f} MB takes at {:.0f} GB/s", each * 1e6,
                  each / floor, floor * 1e6, decode_bytes_ / static_cast<double>(steps) / 1e6, device_.bandwidth() / 1e9);
  if (free_step_seconds_ > 0)
    text += fmt::format("; invariance costs {:.0f}%: {:.0f} us on the GPU instead of {:.0f}",
                        100 * (invariant_step_seconds_ / free_step_seconds_ - 1), invariant_step_seconds_ * 1e6,
                        free_step_seconds_ * 1e6);
  return text;
}

std::string CudaExecutor::device_summary() const {
  const auto stats = nlohmann::json::parse(context_.stats());
  const cuda::Graph::Nodes& n = graph_.nodes();
  return fmt::format(
      "{} kernels compiled, {} from the cache; {} kernels, {} copies and {} other nodes in the graph of a decode step "
      "({:.1f} a layer); in {} steps {} bytes came from the device between layers, {} with the tokens",
      stats["compiles"].get<int64_t>(), stats["disk_hits"].get<int64_t>(), n.kernels, n.copies, n.others,
      static_cast<double>(n.kernels + n.copies + n.others) / static_cast<double>(config_.num_layers), steps_,
      bytes_between_layers_, bytes_of_tokens_);
}

/// Through the engine's calls of the driver and, where it is called, the library's.
int64_t CudaExecutor::bytes_from_device(bool library_called) const {
  const int64_t own = cuda::bytes_from_device();
  return library_called ? own + nlohmann::json::parse(context_.stats())["bytes_from_device"].get<int64_t>() : own;
}

void CudaExecutor::issue(const Shape& shape) {
  Planned& planned = shape.by_row ? decode_ : mixed_;
  mark(Part::kAttention);
  plan(planned, shape);
  mark(Part::kEmbedding);
  gather(embedding_.data.at(), embedding_.rows, layout_.tokens, shape.rows, residual_.at());
  const bool fused = shape.by_row && fuses_decode_;
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (fused) fused_layer(layers_[i], static_cast<int64_t>(i), planned, shape);
    else layer(layers_[i], static_cast<int64_t>(i), planned, shape);
  }
  norm(fused ? residual_.at() : x_.at(), &final_norm_, x_.at(), shape.rows);
  if (shape.samples == 0) return;
  const void* chosen = x_.at();
  if (!shape.by_row) {
    mark(Part::kEmbedding);
    gather(x_.at(), shape.rows, layout_.sample_rows, shape.samples, residual_.at());
    chosen = residual_.at();
  }
  const Matrix& head = config_.tied_embeddings ? embedding_ : head_;
  if (fused) few_rows({.x = chosen, .w = head, .y = logits_.at(), .y_dtype = FULMEN_F32}, shape.samples);
  else multiply(head, chosen, nullptr, logits_.at(), FULMEN_F32, shape.samples);

  mark(Part::kSampling);
  auto args = make<fulmen_sample_args>();
  args.input = tensor(logits_.at(), FULMEN_F32, {shape.samples, config_.vocab});
  args.filter = make<fulmen_filter_params>();
  args.filter.temperatures = stepped(layout_.temperatures, FULMEN_F32, shape.samples);
  args.filter.top_ks = stepped(layout_.top_ks, FULMEN_I32, shape.samples);
  args.filter.top_ps = stepped(layout_.top_ps, FULMEN_F32, shape.samples);
  args.filter.min_ps = stepped(layout_.min_ps, FULMEN_F32, shape.samples);
  args.seeds = stepped(layout_.seeds, FULMEN_U64, shape.samples);
  args.offsets = stepped(layout_.offsets, FULMEN_U64, shape.samples);
  args.tokens = tensor(next_tokens_.at(), FULMEN_I32, {shape.samples});
  sample(context_, args, stream_.get());
}

void CudaExecutor::plan(Planned& planned, const Shape& shape) {
  auto lengths = make<fulmen_attention_lengths>();
  lengths.num_levels = 1;
  lengths.levels[0] = make<fulmen_attention_level>();
  lengths.levels[0].qo_indptr = stepped(layout_.qo_indptr, FULMEN_I32, shape.requests + 1);
  lengths.levels[0].kv_len = stepped(layout_.kv_len, FULMEN_I32, shape.requests);
  planned.attention->plan(lengths, planned.plan.at(), stream_.get());
}

// Attention of a query over one key is that key's value, to the bit: its weight is exp(0) / exp(0). With pages of one
// row and the indices as page table it copies rows by an index that only the device knows, and checks it.
void CudaExecutor::gather(const void* table, int64_t table_rows, size_t index, int64_t count, void* out) {
  const int64_t hidden = config_.hidden, dim = specs_.gather_dim, heads = hidden / dim;
  auto lengths = make<fulmen_attention_lengths>();
  lengths.num_levels = 1;
  lengths.levels[0] = make<fulmen_attention_level>();
  lengths.levels[0].qo_indptr = tensor(row_numbers_.at(), FULMEN_I32, {count + 1});
  lengths.levels[0].kv_len = tensor(ones_.at(), FULMEN_I32, {count});
  gather_.attention->plan(lengths, gather_.plan.at(), stream_.get());
  auto args = make<fulmen_attention_tensors>();
  args.page_size = 1;
  args.q = tensor(zeros_.at(), dtype_, {count, heads, dim});
  args.k = args.v = tensor(table, dtype_, {table_rows, 1, heads, dim});
  args.o = tensor(out, dtype_, {count, heads, dim});
  args.kv[0] = make<fulmen_kv_table>();
  args.kv[0].table = tensor(step_block_.at(index), FULMEN_I32, {count, 1});
  gather_.attention->run(args, gather_.plan.at(), gather_.scratch.at(), stream_.get());
}

void CudaExecutor::norm(const void* x, const cuda::Memory* weight, void* out, int64_t rows) {
  mark(Part::kNorm);
  auto args = make<fulmen_rms_norm_args>();
  args.x = tensor(x, dtype_, {rows, config_.hidden});
  args.out = tensor(out, dtype_, {rows, config_.hidden});
  args.weight = tensor((weight ? *weight : float_ones_).at(), FULMEN_F32, {config_.hidden});
  if (x != residual_.at()) args.residual = tensor(residual_.at(), dtype_, {rows, config_.hidden});
  args.eps = static_cast<float>(config_.norm_eps);
  rms_norm(context_, args, stream_.get());
}

void CudaExecutor::multiply(const Matrix& weights, const void* x, const cuda::Memory* bias, void* y,
                            fulmen_dtype y_dtype, int64_t rows) {
  mark(Part::kMatmul);
  cublas_.multiply(weights.data.at(), x, bias && bias->bytes() ? bias->at() : nullptr, y, rows, weights.rows,
                   weights.cols, dtype_, y_dtype, pinned_rows_, stream_);
}

fulmen_tensor CudaExecutor::cache(int64_t layer, int64_t k_or_v) const {
  const int64_t heads = config_.num_kv_heads, dim = config_.head_dim, size = limits_.page_size;
  const int64_t elements = limits_.num_pages * size * heads * dim;
  return tensor(kv_cache_.at(static_cast<size_t>((2 * layer + k_or_v) * elements * 2)), dtype_,
                {limits_.num_pages, size, heads, dim});
}

fulmen_tensor CudaExecutor::heads_of_qkv(int64_t first, int64_t heads, int64_t rows) const {
  const int64_t dim = config_.head_dim;
  return tensor(qkv_.at(static_cast<size_t>(first * dim) * 2), dtype_, {rows, heads, dim}, {config_.qkv_rows(), dim, 1});
}

void CudaExecutor::rotate_and_append(int64_t index, const Shape& shape) {
  mark(Part::kRope);
  auto args = make<fulmen_rope_append_args>();
  args.q = heads_of_qkv(0, config_.num_heads, shape.rows);
  args.k = heads_of_qkv(config_.num_heads, config_.num_kv_heads, shape.rows);
  args.v = heads_of_qkv(config_.num_heads + config_.num_kv_heads, config_.num_kv_heads, shape.rows);
  args.positions = stepped(layout_.positions, FULMEN_I32, shape.rows);
  args.cos_sin_cache = tensor(rope_table_.at(), FULMEN_F32, {limits_.max_context, config_.rotary_dim});
  args.params = make<fulmen_rope_params>();
  args.params.rotary_dim = static_cast<int32_t>(config_.rotary_dim);
  args.params.interleaved = config_.rope_interleaved;
  args.k_cache = cache(index, 0);
  args.v_cache = cache(index, 1);
  args.slot_mapping = stepped(layout_.slots, FULMEN_I64, shape.rows);
  rope_append(context_, args, stream_.get());
}

void CudaExecutor::attend(int64_t index, Planned& planned, const Shape& shape) {
  mark(Part::kAttention);
  auto args = make<fulmen_attention_tensors>();
  args.page_size = static_cast<int32_t>(limits_.page_size);
  args.q = heads_of_qkv(0, config_.num_heads, shape.rows);
  args.k = cache(index, 0);
  args.v = cache(index, 1);
  args.o = tensor(attended_.at(), dtype_, {shape.rows, config_.num_heads, config_.head_dim});
  args.kv[0] = make<fulmen_kv_table>();
  args.kv[0].table = stepped(layout_.pages, FULMEN_I32, limits_.max_requests * pages_of_a_request(limits_));
  args.kv[0].indptr = stepped(layout_.page_indptr, FULMEN_I32, shape.requests + 1);
  planned.attention->run(args, planned.plan.at(), planned.scratch.at(), stream_.get());
}

void CudaExecutor::layer(const Layer& layer, int64_t index, Planned& planned, const Shape& shape) {
  const int64_t rows = shape.rows;
  norm(index == 0 ? residual_.at() : x_.at(), nullptr, x_.at(), rows);
  multiply(layer.qkv, x_.at(), &layer.qkv_bias, qkv_.at(), dtype_, rows);
  rotate_and_append(index, shape);
  attend(index, planned, shape);
  multiply(layer.output, attended_.at(), nullptr, x_.at(), dtype_, rows);

  norm(x_.at(), nullptr, x_.at(), rows);
  multiply(layer.gate_up, x_.at(), nullptr, gate_up_.at(), dtype_, rows);
  mark(Part::kActivation);
  auto activate = make<fulmen_act_and_mul_args>();
  activate.x = tensor(gate_up_.at(), dtype_, {rows, 2 * config_.intermediate});
  activate.out = tensor(activated_.at(), dtype_, {rows, config_.intermediate});
  activate.activation = FULMEN_SILU;
  act_and_mul(context_, activate, stream_.get());
  multiply(layer.down, activated_.at(), nullptr, x_.at(), dtype_, rows);
}

// Six launches: the norms stand in front of the products that read them, sums and the activation behind those that make
// them.
void CudaExecutor::fused_layer(const Layer& layer, int64_t index, Planned& planned, const Shape& shape) {
  void* stream = residual_.at();
  few_rows({.x = stream, .w = layer.qkv, .y = qkv_.at(), .y_dtype = dtype_, .bias = &layer.qkv_bias, .norm = true}, shape.rows);
  rotate_and_append(index, shape);
  attend(index, planned, shape);
  few_rows({.x = attended_.at(), .w = layer.output, .y = stream, .y_dtype = dtype_, .adds = true}, shape.rows);
  few_rows({.x = stream, .w = layer.gate_up, .y = activated_.at(), .y_dtype = dtype_, .norm = true, .gated = true}, shape.rows);
  few_rows({.x = activated_.at(), .w = layer.down, .y = stream, .y_dtype = dtype_, .adds = true}, shape.rows);
}

void CudaExecutor::few_rows(const FewRows& what, int64_t rows) {
  mark(Part::kMatmul);
  const int64_t width = what.gated ? what.w.rows / 2 : what.w.rows;
  auto args = make<fulmen_linear_args>();
  args.x = tensor(what.x, dtype_, {rows, what.w.cols});
  args.w = tensor(what.w.data.at(), dtype_, {what.w.rows, what.w.cols});
  args.y = tensor(what.y, what.y_dtype, {rows, width});
  if (what.bias && what.bias->bytes()) args.bias = tensor(what.bias->at(), dtype_, {what.w.rows});
  if (what.adds) args.residual = args.y;
  args.gated = what.gated;
  args.activation = FULMEN_SILU;
  constexpr float kLeast = 1e-30f;  // 0 would mean no norm
  args.rms_eps = what.norm ? std::max(static_cast<float>(config_.norm_eps), kLeast) : 0.0f;
  linear(context_, args, stream_.get());
}

}  // namespace fulmen::engine
