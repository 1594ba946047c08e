// Continuous batching: which tokens of which requests go through the model in the next step.
//
// A step takes one token of every request that decodes, and fills its rows up with chunks of prompts, oldest request
// first. When pages run out the youngest running request gives its pages back and waits to be computed again; the
// oldest one always gets on, so no request is lost. Nothing here touches the model: tests run it alone.
#pragma once

#include "engine/pages.hpp"
#include "engine/prefix_tree.hpp"

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

namespace fulmen::engine {

struct SchedulerOptions {
  int32_t page_size = 16;
  int32_t num_pages = 1024;
  int32_t max_batch = 32;      // requests that run at once
  int32_t max_rows = 512;      // tokens of one step
  int32_t chunk = 256;         // prompt tokens of one request in one step
  bool share_prefixes = true;
};

/// One request as the scheduler sees it.
struct Sequence {
  int64_t id = 0;                // order of arrival
  std::vector<int32_t> tokens;   // prompt, then what was made
  int64_t prompt_tokens = 0;
  int64_t max_tokens = 0;        // to be made at most

  enum class State { kWaiting, kPrefill, kDecode, kDone } state = State::kWaiting;
  int64_t computed = 0;          // tokens whose keys and values are in the cache, this step's included
  std::vector<int32_t> pages;
  int64_t shared_tokens = 0;     // of the first admission: found in the prefix tree instead of computed
  int32_t preemptions = 0;

  int64_t made_tokens() const { return static_cast<int64_t>(tokens.size()) - prompt_tokens; }
};

/// A run of tokens of one sequence: [first, first + count).
struct ScheduledRows {
  Sequence* sequence;
  int64_t first, count;
  bool samples;  // the last row's logits give the next token
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  /// Empty if the request can run, else why it never could.
  std::string reason_to_refuse(int64_t prompt_tokens, int64_t max_tokens) const;
  /// The sequence must outlive its run.
  void add(Sequence* sequence);
  /// The next step's rows, in order of arrival; empty when no request is left.
  std::vector<ScheduledRows> next();
  /// The token that the step made for a sequence whose rows sample.
  void append(Sequence* sequence, int32_t token);
  /// Takes a sequence out, whatever its state; its full pages stay in the prefix tree while nobody needs them.
  void finish(Sequence* sequence);
  /// Forgets all prefixes: after a step that failed half way.
  void forget_prefixes() { tree_.clear(); }

  bool idle() const { return waiting_.empty() && running_.empty(); }
  const SchedulerOptions& options() const { return options_; }
  const std::deque<Sequence*>& running() const { return running_; }
  const std::deque<Sequence*>& waiting() const { return waiting_; }

  struct PageUse {
    int32_t total, free, shared, cached;  // shared: held by two requests or more; cached: only remembered
    int32_t used() const { return total - free - cached; }
  };
  PageUse page_use() const;

 private:
  bool grow(Sequence& sequence, int64_t tokens, bool may_preempt);
  void preempt(Sequence* sequence);
  bool admit(Sequence* sequence);
  bool prefix_is_being_computed(const Sequence& sequence, int64_t known) const;
  void schedule(Sequence& sequence, int64_t count, std::vector<ScheduledRows>& step);

  SchedulerOptions options_;
  PageAllocator pages_;
  PrefixTree tree_;
  std::deque<Sequence*> waiting_, running_;  // both in order of arrival
};

}  // namespace fulmen::engine
