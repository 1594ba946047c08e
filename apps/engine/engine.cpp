#include "engine/engine.hpp"

#include "engine/cpu_executor.hpp"
#include "engine/cuda_executor.hpp"
#include "engine/input_error.hpp"
#include "engine/kernel_specs.hpp"
#include "engine/step_arrays.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace fulmen::engine {
namespace {

constexpr int64_t kDefaultContext = 8192;
constexpr int64_t kDefaultKvMemory = int64_t{256} << 20;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Fulmen knows what affinity mask, cgroup and environment allow.
int allowed_threads() { return Context::cpu().num_workers(); }

int64_t choose_context(int64_t wanted, const ModelConfig& config) {
  if (wanted == 0) return std::min(config.context, kDefaultContext);
  if (wanted < 0 || wanted > config.context)
    throw InputError(fmt::format("--context: the model takes 1 to {} tokens, found {}", config.context, wanted));
  return wanted;
}

int64_t choose_pages(const EngineOptions& options, int64_t page_bytes, int64_t context) {
  const int64_t for_one_request = (context + options.page_size - 1) / options.page_size;
  int64_t pages = options.pages;
  if (pages == 0 && options.kv_memory != 0) pages = options.kv_memory / page_bytes;
  if (pages == 0 && options.kv_memory == 0) pages = std::max(kDefaultKvMemory / page_bytes, for_one_request);
  constexpr int64_t kMost = int64_t{1} << 28;
  if (pages < 1 || pages > kMost)
    throw InputError(fmt::format("KV memory: expected 1 to {} pages of {} bytes, found {}", kMost, page_bytes, pages));
  return pages;
}

}  // namespace

const char* finish_name(Finish finish) {
  switch (finish) {
    case Finish::kRunning: return "running";
    case Finish::kEnd: return "end";
    case Finish::kStop: return "stop";
    case Finish::kLength: return "length";
    case Finish::kInterrupted: return "interrupted";
    case Finish::kError: return "error";
  }
  return "";
}

double Request::seconds_to_first_token() const {
  return first_token == Clock::time_point{} ? 0 : seconds_between(submitted, first_token);
}

double Request::decode_tokens_per_second() const {
  const int64_t later_tokens = sequence.made_tokens() - 1;
  if (later_tokens < 1) return 0;
  return static_cast<double>(later_tokens) / seconds_between(first_token, done() ? finished : Clock::now());
}

Engine::Engine(const EngineOptions& options) {
  const Clock::time_point start = Clock::now();
  const GgufFile file = GgufFile::open(options.model_path, {.mmap = options.mmap});
  config_ = read_model_config(file);
  tokenizer_ = std::make_unique<Tokenizer>(file);
  if (tokenizer_->vocab_size() > config_.vocab)
    throw InputError(fmt::format("{}: {} tokens in the tokenizer, {} in the embedding table", file.path(),
                                 tokenizer_->vocab_size(), config_.vocab));
  if (file.has("tokenizer.chat_template")) {
    try {
      chat_template_ = ChatTemplate::recognized(file.string("tokenizer.chat_template"));
    } catch (const InputError& error) {
      chat_template_error_ = error.what();
    }
  }
  context_ = choose_context(options.context, config_);
  pool_ = std::make_unique<Pool>(options.threads > 0 ? options.threads : allowed_threads());

  SchedulerOptions schedule;
  schedule.page_size = options.page_size;
  const int64_t kv_element_bytes = options.kv_dtype == FULMEN_F32 ? 4 : 2;
  const int64_t page_bytes = config_.kv_bytes_per_token(kv_element_bytes) * options.page_size;
  schedule.num_pages = static_cast<int32_t>(choose_pages(options, page_bytes, context_));
  schedule.max_batch = options.batch;
  schedule.chunk = options.chunk;
  schedule.share_prefixes = options.share_prefixes;
  ExecutorLimits limits = executor_limits(options.batch, options.chunk, options.page_size, context_, options.kv_dtype);
  limits.num_pages = schedule.num_pages;
  schedule.max_rows = static_cast<int32_t>(limits.max_rows);
  scheduler_ = std::make_unique<Scheduler>(schedule);

  if (options.device != EngineOptions::Device::kCpu) {
    try {
      executor_ = std::make_unique<CudaExecutor>(config_, file, *pool_, limits, options.invariant);
    } catch (const std::runtime_error& error) {  // whatever the GPU, its driver or a library of it lacks
      if (options.device == EngineOptions::Device::kCuda) throw cuda::Unavailable(error.what());
      device_note_ = error.what();
    }
  }
  if (!executor_) executor_ = std::make_unique<CpuExecutor>(config_, file, *pool_, limits);
  stats_.load_seconds = seconds_between(start, Clock::now());
}

Engine::~Engine() = default;

Request& Engine::submit(RequestOptions options) {
  Request& request = *requests_.emplace_back(std::make_unique<Request>());
  request.submitted = Clock::now();
  request.stops = StopFilter(options.stop);
  const int64_t prompt = static_cast<int64_t>(options.prompt.size());
  request.sequence.id = next_id_++;
  request.sequence.tokens = options.prompt;
  request.sequence.prompt_tokens = prompt;
  request.sequence.max_tokens = std::min(options.max_tokens, context_ - prompt);
  request.options = std::move(options);

  const auto refuse = [&](std::string why) {
    request.error = std::move(why);
    end(request, Finish::kError);
  };
  if (prompt == 0) {
    refuse("the prompt is empty");
  } else if (prompt >= context_) {
    refuse(fmt::format("the prompt has {} tokens, the context ends at {} and an answer needs at least one", prompt,
                       context_));
  } else if (request.options.max_tokens < 1) {
    refuse(fmt::format("max_tokens: expected at least 1, found {}", request.options.max_tokens));
  } else if (const auto bad = std::find_if(request.sequence.tokens.begin(), request.sequence.tokens.end(),
                                           [&](int32_t t) { return t < 0 || t >= config_.vocab; });
             bad != request.sequence.tokens.end()) {
    refuse(fmt::format("token {} is outside the vocabulary of {}", *bad, config_.vocab));
  } else if (std::string why = scheduler_->reason_to_refuse(prompt, request.sequence.max_tokens); !why.empty()) {
    refuse(std::move(why));
  } else {
    scheduler_->add(&request.sequence);
  }
  return request;
}

void Engine::end(Request& request, Finish finish) {
  request.text += request.stops.push(request.utf8.finish());
  request.text += request.stops.finish();
  request.finish = finish;
  request.finished = Clock::now();
  scheduler_->finish(&request.sequence);
}

void Engine::interrupt(Request& request) {
  if (!request.done()) end(request, Finish::kInterrupted);
}

void Engine::forget(Request& request) {
  interrupt(request);
  std::erase_if(requests_, [&](const auto& r) { return r.get() == &request; });
}

void Engine::take_token(Request& request, int32_t token) {
  if (request.first_token == Clock::time_point{}) request.first_token = Clock::now();
  if (token < 0) {
    request.error = "the model's logits are not numbers";
    return end(request, Finish::kError);
  }
  if (!request.options.ignore_end && token < tokenizer_->vocab_size() && tokenizer_->ends_generation(token))
    return end(request, Finish::kEnd);
  scheduler_->append(&request.sequence, token);
  ++stats_.made_tokens;
  if (token < tokenizer_->vocab_size()) request.text += request.stops.push(request.utf8.push(tokenizer_->decode(token)));
  if (request.stops.stopped()) return end(request, Finish::kStop);
  if (request.sequence.made_tokens() == request.sequence.max_tokens) end(request, Finish::kLength);
}

bool Engine::step() {
  const Clock::time_point start = Clock::now();
  std::vector<ScheduledRows> rows = scheduler_->next();
  if (rows.empty()) return false;

  const auto request_of = [&](const Sequence* sequence) -> Request& {
    return **std::lower_bound(requests_.begin(), requests_.end(), sequence->id,  // they stand in order of arrival
                              [](const auto& r, int64_t id) { return r->sequence.id < id; });
  };
  StepArrays arrays(scheduler_->options().page_size);
  const std::vector<SharedRun> runs = group_by_shared_pages(rows, scheduler_->options().page_size);
  int64_t prompt_tokens = 0, shared_keys = 0;
  for (const SharedRun& run : runs) {
    arrays.add_shared(run, std::span(rows).subspan(run.first, run.count));
    shared_keys += run.tokens * static_cast<int64_t>(run.count - 1);
    for (const ScheduledRows& r : std::span(rows).subspan(run.first, run.count)) {
      Request& request = request_of(r.sequence);
      if (request.started == Clock::time_point{}) {
        request.started = start;
        stats_.shared_tokens += r.sequence->shared_tokens;
      }
      arrays.add(r, request.options.sampling, run.tokens);
      if (r.count > 1 || r.first < r.sequence->prompt_tokens) prompt_tokens += r.count;
    }
  }
  std::vector<int32_t> next(arrays.num_samples());
  try {
    executor_->run(arrays.view(), next);
  } catch (...) {
    scheduler_->forget_prefixes();  // their pages may not have been written
    throw;
  }

  const Scheduler::PageUse use = scheduler_->page_use();
  stats_.most_pages_used = std::max(stats_.most_pages_used, use.used());
  stats_.most_pages_shared = std::max(stats_.most_pages_shared, use.shared);
  const int64_t made_before = stats_.made_tokens;
  for (size_t i = 0, sampled = 0; i < rows.size(); ++i) {
    if (!rows[i].samples) continue;
    Request& request = request_of(rows[i].sequence);
    if (request.options.keep_logits) {
      const auto logits = executor_->logits().subspan(sampled * config_.vocab, config_.vocab);
      request.logits.emplace_back(logits.begin(), logits.end());
    }
    take_token(request, next[sampled++]);
  }

  const double seconds = seconds_between(start, Clock::now());
  ++stats_.steps;
  stats_.prompt_tokens += prompt_tokens;
  stats_.keys_read_once += shared_keys;
  (prompt_tokens > 0 ? stats_.prompt_seconds : stats_.decode_seconds) += seconds;
  if (prompt_tokens == 0) stats_.decode_tokens += stats_.made_tokens - made_before;
  return true;
}

}  // namespace fulmen::engine
