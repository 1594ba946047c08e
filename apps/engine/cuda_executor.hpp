// The forward pass on a GPU: matrix products by cuBLASLt, in decode steps of few rows by Fulmen's linear, everything else by
// Fulmen. Weights, cache and activations are
// in device memory, in the dtype of the cache.
//
// A step goes up as one block (device_step.hpp) and its tokens come down in one copy; nothing else crosses, and the host
// waits once, for the tokens. Steps in which every request has one row replay one captured graph that is right for every
// batch up to the limit: missing requests have no rows and no keys.
#pragma once

#include "engine/cpu_executor.hpp"
#include "engine/cublaslt.hpp"
#include "engine/cuda_driver.hpp"
#include "engine/device_step.hpp"
#include "engine/kernel_specs.hpp"

#include <fulmen/fulmen.hpp>

#include <optional>
#include <string>
#include <vector>

namespace fulmen::engine {

class CudaExecutor final : public Executor {
 public:
  /// Throws cuda::Unavailable or fulmen::StatusError where the GPU can't be used.
  CudaExecutor(const ModelConfig& config, const GgufFile& file, Pool& pool, const ExecutorLimits& limits, bool invariant);
  ~CudaExecutor() override;

  void run(const Step& step, std::span<int32_t> next_tokens) override;
  std::span<const float> logits() override;
  PartSeconds seconds() const override { return seconds_; }
  int64_t weight_bytes() const override { return weight_bytes_; }
  int64_t kv_bytes_per_token() const override { return config_.kv_bytes_per_token(2); }
  std::string_view description() const override { return description_; }
  std::string step_summary() const override;
  std::string device_summary() const override;

 private:
  struct Matrix {
    cuda::Memory data;
    int64_t rows = 0, cols = 0;
  };
  struct Layer {
    cuda::Memory qkv_bias;
    Matrix qkv, output, gate_up, down;  // with the norms' weights in the columns of qkv and gate_up
  };
  struct Planned {  // an attention with its memories
    std::optional<Attention> attention;
    cuda::Memory plan, scratch;
  };
  /// What the launches of a step depend on.
  struct Shape {
    int64_t rows, requests, samples;
    bool by_row;  // row i samples as sample i: nothing is moved
  };

  /// A product of few rows and what stands around it.
  struct FewRows {
    const void* x;
    const Matrix& w;
    void* y;
    fulmen_dtype y_dtype;
    const cuda::Memory* bias = nullptr;
    bool norm = false, gated = false;
    bool adds = false;  // to what y holds
  };

  /// The tensors' rows one below the other; columns: factors of the columns, before rounding.
  Matrix upload_matrix(const GgufFile& file, Pool& pool, std::initializer_list<std::string> names,
                       const std::vector<float>* columns = nullptr);
  void load(const GgufFile& file, Pool& pool);
  Planned make_attention(const KernelSpecs::OneAttention& one) const;
  void capture(cuda::Graph& graph, bool with_events);
  bool can_fuse() const;
  void capture_free();
  void measure_price();

  void issue(const Shape& shape);
  void plan(Planned& planned, const Shape& shape);
  void layer(const Layer& layer, int64_t index, Planned& planned, const Shape& shape);
  void fused_layer(const Layer& layer, int64_t index, Planned& planned, const Shape& shape);
  void rotate_and_append(int64_t index, const Shape& shape);
  void attend(int64_t index, Planned& planned, const Shape& shape);
  /// out[i] = table[index[i]], [count, hidden].
  void gather(const void* table, int64_t table_rows, size_t index, int64_t count, void* out);
  /// residual_ += x first, unless x is residual_ itself.
  /// weight = nullptr: it is in the matrix that reads `out`.
  void norm(const void* x, const cuda::Memory* weight, void* out, int64_t rows);
  void few_rows(const FewRows& what, int64_t rows);
  void multiply(const Matrix& weights, const void* x, const cuda::Memory* bias, void* y, fulmen_dtype y_dtype,
                int64_t rows);
  int64_t bytes_from_device(bool library_called) const;
  void mark(Part part);
  void read_marks();
  fulmen_tensor cache(int64_t layer, int64_t k_or_v) const;
  fulmen_tensor heads_of_qkv(int64_t first, int64_t heads, int64_t rows) const;
  fulmen_tensor stepped(size_t offset, fulmen_dtype dtype, int64_t count) const {
    return tensor(step_block_.at(offset), dtype, {count});
  }

  ModelConfig config_;
  ExecutorLimits limits_;
  fulmen_dtype dtype_;
  int64_t pinned_rows_;  // 0: the fastest product for each number of rows
  bool fuses_decode_;    // a decode step's products by fulmen_linear
  KernelSpecs specs_;
  cuda::Device device_;
  cuda::Stream stream_;
  CublasLt cublas_;
  Context context_;
  DeviceStep layout_;
  cuda::Pinned pinned_step_, pinned_tokens_;
  std::string description_;

  Matrix embedding_, head_;
  cuda::Memory final_norm_, float_ones_, rope_table_;
  std::vector<Layer> layers_;
  int64_t weight_bytes_ = 0;

  Planned mixed_, decode_, gather_, free_decode_;
  cuda::Memory kv_cache_, step_block_, next_tokens_;
  cuda::Memory residual_, x_, qkv_, attended_, gate_up_, activated_, logits_;
  cuda::Memory zeros_, row_numbers_, ones_;  // of gather
  cuda::Graph graph_, profile_graph_;
  cuda::Graph free_graph_;  // in invariant mode: the same step without it
  double free_step_seconds_ = 0, invariant_step_seconds_ = 0;

  std::vector<std::pair<cuda::Event, Part>> marks_;
  bool marking_ = false;
  PartSeconds seconds_{};
  std::vector<int32_t> last_sample_rows_;
  std::vector<float> host_logits_;
  int64_t steps_ = 0, bytes_between_layers_ = 0, bytes_of_tokens_ = 0;
  int64_t decode_steps_ = 0;
  double decode_seconds_ = 0, decode_bytes_ = 0;
};

}  // namespace fulmen::engine
