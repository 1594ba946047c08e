#include "engine/scheduler.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace fulmen::engine {
namespace {

int64_t pages_for(int64_t tokens, int64_t page_size) { return (tokens + page_size - 1) / page_size; }

void insert_by_arrival(std::deque<Sequence*>& queue, Sequence* sequence) {
  const auto later = std::find_if(queue.begin(), queue.end(), [&](Sequence* s) { return s->id > sequence->id; });
  queue.insert(later, sequence);
}

void remove(std::deque<Sequence*>& queue, Sequence* sequence) {
  queue.erase(std::remove(queue.begin(), queue.end(), sequence), queue.end());
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), pages_(options.num_pages), tree_(pages_, options.page_size) {}

std::string Scheduler::reason_to_refuse(int64_t prompt_tokens, int64_t max_tokens) const {
  const int64_t needed = pages_for(prompt_tokens + max_tokens, options_.page_size);
  if (needed <= options_.num_pages) return {};
  return fmt::format("{} prompt tokens and {} to be made need {} KV pages of {} tokens, there are {}", prompt_tokens,
                     max_tokens, needed, options_.page_size, options_.num_pages);
}

void Scheduler::add(Sequence* sequence) {
  sequence->state = Sequence::State::kWaiting;
  insert_by_arrival(waiting_, sequence);
}

// Gives the sequence pages for its first `tokens` tokens.
bool Scheduler::grow(Sequence& sequence, int64_t tokens, bool may_preempt) {
  const int64_t wanted = pages_for(tokens, options_.page_size);
  while (static_cast<int64_t>(sequence.pages.size()) < wanted) {
    std::optional<int32_t> page = pages_.allocate();
    if (!page) {
      tree_.evict(1);
      page = pages_.allocate();
    }
    if (page) {
      sequence.pages.push_back(*page);
      continue;
    }
    if (!may_preempt) return false;
    Sequence* youngest = running_.back();
    preempt(youngest);
    if (youngest == &sequence) return false;
  }
  return true;
}

void Scheduler::preempt(Sequence* sequence) {
  remove(running_, sequence);
  for (const int32_t page : sequence->pages) pages_.release(page);
  sequence->pages.clear();
  sequence->computed = 0;
  ++sequence->preemptions;
  add(sequence);
}

// True while a running request still has to compute tokens that this one could share: then waiting a step is cheaper.
bool Scheduler::prefix_is_being_computed(const Sequence& sequence, int64_t known) const {
  for (const Sequence* other : running_) {
    if (other->state != Sequence::State::kPrefill) continue;
    const auto [a, b] = std::mismatch(sequence.tokens.begin(), sequence.tokens.end() - 1, other->tokens.begin(),
                                      other->tokens.end());
    const int64_t common = (a - sequence.tokens.begin()) / options_.page_size * options_.page_size;
    if (common > known && common > other->computed) return true;
  }
  return false;
}

bool Scheduler::admit(Sequence* sequence) {
  // The last token is always computed, for its logits.
  const std::span<const int32_t> sharable(sequence->tokens.data(), sequence->tokens.size() - 1);
  if (options_.share_prefixes) {
    const int64_t known = tree_.match_length(sharable);
    if (prefix_is_being_computed(*sequence, known)) return false;
    sequence->pages = tree_.match(sharable);
  }
  // A request starts only when all of its prompt fits, so that a burst of arrivals doesn't preempt itself.
  const int64_t missing =
      pages_for(static_cast<int64_t>(sequence->tokens.size()) + 1, options_.page_size) - sequence->pages.size();
  if (!running_.empty() && missing > pages_.num_free() + tree_.num_unused()) {
    for (const int32_t page : sequence->pages) pages_.release(page);
    sequence->pages.clear();
    return false;
  }
  sequence->computed = static_cast<int64_t>(sequence->pages.size()) * options_.page_size;
  if (sequence->preemptions == 0) sequence->shared_tokens = sequence->computed;
  sequence->state = Sequence::State::kPrefill;
  insert_by_arrival(running_, sequence);
  return true;
}

void Scheduler::schedule(Sequence& sequence, int64_t count, std::vector<ScheduledRows>& step) {
  const int64_t first = sequence.computed, size = static_cast<int64_t>(sequence.tokens.size());
  sequence.computed += count;
  const bool samples = sequence.computed == size;
  sequence.state = samples ? Sequence::State::kDecode : Sequence::State::kPrefill;
  step.push_back({&sequence, first, count, samples});
  // Known from now on: a layer writes the keys and values of all rows of a step before any row reads them, so that a
  // request admitted to this very step may already share them.
  if (options_.share_prefixes && sequence.computed / options_.page_size > first / options_.page_size)
    tree_.insert(sequence.tokens, std::span(sequence.pages).first(sequence.computed / options_.page_size));
}

std::vector<ScheduledRows> Scheduler::next() {
  std::vector<ScheduledRows> step;
  int64_t prompt_rows = options_.max_rows;
  for (const Sequence* sequence : running_)
    prompt_rows -= sequence->computed + 1 == static_cast<int64_t>(sequence->tokens.size());
  // grow() preempts from the back, so a sequence that already stands in the step keeps its pages.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    const int64_t left = static_cast<int64_t>(sequence.tokens.size()) - sequence.computed;
    int64_t count = 1;
    if (left > 1) {
      count = std::min({left, static_cast<int64_t>(options_.chunk), prompt_rows});
      if (count <= 0) continue;
    }
    if (!grow(sequence, sequence.computed + count, /*may_preempt=*/true)) break;  // it was the youngest
    if (left > 1) prompt_rows -= count;
    schedule(sequence, count, step);
  }
  while (!waiting_.empty() && prompt_rows > 0 && static_cast<int32_t>(running_.size()) < options_.max_batch) {
    Sequence* sequence = waiting_.front();
    if (!admit(sequence)) break;
    waiting_.pop_front();
    const int64_t left = static_cast<int64_t>(sequence->tokens.size()) - sequence->computed;
    const int64_t count = std::min({left, static_cast<int64_t>(options_.chunk), prompt_rows});
    if (!grow(*sequence, sequence->computed + count, /*may_preempt=*/false)) {
      preempt(sequence);
      --sequence->preemptions;  // it hasn't run
      break;
    }
    prompt_rows -= count;
    schedule(*sequence, count, step);
  }
  return step;
}

void Scheduler::append(Sequence* sequence, int32_t token) { sequence->tokens.push_back(token); }

void Scheduler::finish(Sequence* sequence) {
  remove(waiting_, sequence);
  remove(running_, sequence);
  for (const int32_t page : sequence->pages) pages_.release(page);
  sequence->pages.clear();
  sequence->state = Sequence::State::kDone;
}

Scheduler::PageUse Scheduler::page_use() const {
  std::vector<int32_t> holders(options_.num_pages, 0);
  for (const Sequence* sequence : running_)
    for (const int32_t page : sequence->pages) ++holders[page];
  const auto shared = std::count_if(holders.begin(), holders.end(), [](int32_t n) { return n > 1; });
  return {options_.num_pages, pages_.num_free(), static_cast<int32_t>(shared), tree_.num_unused()};
}

}  // namespace fulmen::engine
