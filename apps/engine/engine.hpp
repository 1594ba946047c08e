// The serving engine: requests in, text out. One thread calls submit and step; a request's state may be read between
// two steps.
#pragma once

#include "engine/chat_template.hpp"
#include "engine/executor.hpp"
#include "engine/model.hpp"
#include "engine/pool.hpp"
#include "engine/request_options.hpp"
#include "engine/scheduler.hpp"
#include "engine/stop_filter.hpp"
#include "engine/tokenizer.hpp"
#include "engine/utf8.hpp"

#include <fulmen/fulmen.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace fulmen::engine {

using Clock = std::chrono::steady_clock;

struct EngineOptions {
  std::string model_path;
  bool mmap = true;
  int threads = 0;             // 0: what affinity mask, cgroup and FULMEN_NUM_THREADS allow
  int64_t context = 0;         // tokens of a request, prompt and answer; 0: the model's, at most 8192
  int32_t batch = 16;          // requests that run at once
  int32_t chunk = 256;         // prompt tokens of a request in one step
  int32_t page_size = 16;
  int64_t pages = 0;           // 0: from kv_memory
  int64_t kv_memory = 0;       // bytes; 0: 256 MiB. Never less than one request of `context` tokens
  fulmen_dtype kv_dtype = FULMEN_F16;
  bool share_prefixes = true;
  enum class Device { kCpu, kCuda, kAuto } device = Device::kCpu;
  bool invariant = false;      // on the GPU, at a price; on the CPU always
};

enum class Finish { kRunning, kEnd, kStop, kLength, kInterrupted, kError };
const char* finish_name(Finish finish);  // "end", "stop", "length", ...

struct Request {
  RequestOptions options;
  Sequence sequence;
  std::string text;              // made so far, whole UTF-8, without stop strings
  Finish finish = Finish::kRunning;
  std::string error;             // one line, with kError
  Clock::time_point submitted{}, started{}, first_token{}, finished{};

  bool done() const { return finish != Finish::kRunning; }
  std::span<const int32_t> made() const {
    return std::span(sequence.tokens).subspan(static_cast<size_t>(sequence.prompt_tokens));
  }
  double seconds_to_first_token() const;  // since it was submitted; 0 without one
  double decode_tokens_per_second() const;

  std::vector<std::vector<float>> logits;  // [token made][vocab], with keep_logits
  Utf8Stream utf8;
  StopFilter stops{{}};
};

/// Counted since the engine was made.
struct EngineStats {
  int64_t steps = 0;
  int64_t prompt_tokens = 0;          // computed, recomputed ones included
  int64_t shared_tokens = 0;          // not computed because their pages were known
  int64_t keys_read_once = 0;         // in attention, for several requests instead of for each
  int64_t made_tokens = 0;
  int64_t decode_tokens = 0;          // made in steps without prompt tokens
  double prompt_seconds = 0;          // of steps with prompt tokens
  double decode_seconds = 0;          // of the others
  int32_t most_pages_used = 0, most_pages_shared = 0;
  double load_seconds = 0;
};

class Engine {
 public:
  /// Throws InputError for a model or options that can't be used, cuda::Unavailable where the device must be a GPU and
  /// none can be used.
  explicit Engine(const EngineOptions& options);
  ~Engine();

  /// A request that can't run comes back finished, with its error; others are unharmed.
  Request& submit(RequestOptions options);
  /// One step of the model for all running requests. False when there was nothing to do.
  bool step();
  /// Ends a request and keeps what was made.
  void interrupt(Request& request);
  /// Forgets a finished request.
  void forget(Request& request);

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const ModelConfig& model() const { return config_; }
  const std::optional<ChatTemplate>& chat_template() const { return chat_template_; }
  /// Why chat_template() is empty.
  const std::string& chat_template_error() const { return chat_template_error_; }
  int64_t context() const { return context_; }
  const Scheduler& scheduler() const { return *scheduler_; }
  Executor& executor() { return *executor_; }
  Pool& pool() { return *pool_; }
  const EngineStats& stats() const { return stats_; }
  /// Why the CPU serves though a GPU was allowed; empty otherwise.
  const std::string& device_note() const { return device_note_; }

 private:
  void take_token(Request& request, int32_t token);
  void end(Request& request, Finish finish);

  ModelConfig config_;
  int64_t context_ = 0;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_template_;
  std::string chat_template_error_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<std::unique_ptr<Request>> requests_;
  int64_t next_id_ = 0;
  EngineStats stats_;
  std::string device_note_;
};

}  // namespace fulmen::engine
