// What carries out a step of the schedule. The rest of the engine knows nothing of where weights and caches lie, so
// that a back end in device memory is one more class with these functions.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace fulmen::engine {

struct Sampling {
  float temperature = 0;  // 0: the most likely token
  int32_t top_k = 0;      // 0: all
  float top_p = 1;
  float min_p = 0;
  uint64_t seed = 0;
};

/// One forward pass over the rows of several requests. Row i of a request with n rows and L keys stands at L - n + i.
struct Step {
  std::span<const int32_t> tokens;       // [rows]
  std::span<const int32_t> positions;    // [rows]
  std::span<const int64_t> slots;        // [rows] where K and V go: page * page_size + offset
  std::span<const int32_t> qo_indptr;    // [requests + 1]
  std::span<const int32_t> kv_len;       // [requests], this step's rows included, without the shared keys below
  std::span<const int32_t> page_indptr;  // [requests + 1]
  std::span<const int32_t> pages;        // page ids of all requests
  std::span<const int32_t> sample_rows;  // rows whose next token is wanted
  std::span<const Sampling> sampling;    // one for each of them

  /// Beginnings that several requests share and whose keys are read once for all of them. Segment g stands before the
  /// keys of the requests whose rows are shared_qo_indptr[g] .. [g + 1]; a request on its own has a segment without
  /// keys. Empty: nothing is shared.
  std::span<const int32_t> shared_qo_indptr, shared_kv_len, shared_page_indptr, shared_pages;
};

/// Where a step's time went.
enum class Part { kEmbedding, kMatmul, kAttention, kAppend, kRope, kNorm, kActivation, kSampling, kCount };
constexpr size_t kNumParts = static_cast<size_t>(Part::kCount);
constexpr std::array<std::string_view, kNumParts> kPartNames = {
    "embedding", "matrix products", "attention", "append to KV", "RoPE", "RMSNorm", "activation", "sampling"};
using PartSeconds = std::array<double, kNumParts>;

class Executor {
 public:
  virtual ~Executor() = default;
  /// Writes the next token of each sample row; -1 where the row's logits are not numbers.
  virtual void run(const Step& step, std::span<int32_t> next_tokens) = 0;
  /// f32 [sample rows, vocab] of the last step.
  virtual std::span<const float> logits() = 0;
  virtual PartSeconds seconds() const = 0;
  virtual int64_t weight_bytes() const = 0;  // read by a decode step
  virtual int64_t kv_bytes_per_token() const = 0;
  virtual std::string_view description() const = 0;
  /// A decode step's time beside what it could be at best; empty if that isn't known.
  virtual std::string step_summary() const { return {}; }
  /// What the device was asked for: kernels compiled, launches of a step, bytes that came back; empty if there is none.
  virtual std::string device_summary() const { return {}; }
};

}  // namespace fulmen::engine
