#include "engine/scheduler.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <set>

namespace fulmen::engine {
namespace {

TEST(PageAllocator, CountsReferences) {
  PageAllocator pages(2);
  const int32_t a = *pages.allocate(), b = *pages.allocate();
  EXPECT_NE(a, b);
  EXPECT_FALSE(pages.allocate());
  pages.retain(a);
  pages.release(a);
  EXPECT_EQ(pages.num_free(), 0);
  pages.release(a);
  EXPECT_EQ(pages.num_free(), 1);
  EXPECT_EQ(*pages.allocate(), a);
}

std::vector<int32_t> counting(int32_t count, int32_t from = 0) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

struct TreeFixture {
  PageAllocator pages{16};
  PrefixTree tree{pages, 4};
  std::vector<int32_t> take(int n) {
    std::vector<int32_t> taken;
    for (int i = 0; i < n; ++i) taken.push_back(*pages.allocate());
    return taken;
  }
  void release(const std::vector<int32_t>& list) {
    for (const int32_t page : list) pages.release(page);
  }
};

TEST(PrefixTree, FindsWholePagesOfTheLongestPrefix) {
  TreeFixture f;
  const auto tokens = counting(12);
  const auto own = f.take(3);
  f.tree.insert(tokens, own);
  EXPECT_EQ(f.tree.match_length(tokens), 12);
  EXPECT_EQ(f.tree.match_length(std::span(tokens).first(11)), 8);
  EXPECT_EQ(f.tree.match_length(std::span(tokens).first(3)), 0);
  auto other = tokens;
  other[5] = 99;
  EXPECT_EQ(f.tree.match(other), std::vector<int32_t>{own[0]});
  EXPECT_EQ(f.pages.references(own[0]), 3);
  EXPECT_EQ(f.pages.references(own[1]), 2);
}

TEST(PrefixTree, EvictsTheLeastRecentlyUsedAndNothingInUse) {
  TreeFixture f;
  const auto first = counting(8), second = counting(8, 100);
  const auto a = f.take(2), b = f.take(2);
  f.tree.insert(first, a);
  f.tree.insert(second, b);
  f.release(a);
  f.release(b);
  EXPECT_EQ(f.tree.num_unused(), 4);
  const auto held = f.tree.match(std::span(first).first(4));  // first's first page is in use again
  EXPECT_EQ(f.tree.num_unused(), 3);
  f.tree.evict(13);
  EXPECT_EQ(f.tree.match_length(first), 4);  // its leaf was the oldest
  EXPECT_EQ(f.tree.match_length(second), 8);
  f.tree.evict(16);
  EXPECT_EQ(f.tree.match_length(first), 4);
  EXPECT_EQ(f.tree.match_length(second), 0);
  EXPECT_EQ(f.pages.num_free(), 15);
  f.release(held);
  f.tree.clear();
  EXPECT_EQ(f.pages.num_free(), 16);
}

TEST(PrefixTree, KeepsTheFirstOfTwoPagesWithTheSameTokens) {
  TreeFixture f;
  const auto tokens = counting(8);
  const auto a = f.take(1), b = f.take(2);
  f.tree.insert(std::span(tokens).first(4), a);
  f.tree.insert(tokens, b);
  EXPECT_EQ(f.tree.match_length(tokens), 4);
  EXPECT_EQ(f.tree.num_pages(), 1);
}

// A model whose next token is a function of all tokens before it, and which reads them from the pages, as attention
// would: a wrong page, a page given away too early or a row computed twice shows as a wrong token.
class PagedModel {
 public:
  explicit PagedModel(const SchedulerOptions& options)
      : size_(options.page_size), slots_(static_cast<size_t>(options.num_pages) * options.page_size, -1) {}

  static int32_t next_token(const std::vector<int32_t>& before) {
    uint32_t hash = 2166136261u;
    for (const int32_t token : before) hash = (hash ^ static_cast<uint32_t>(token)) * 16777619u;
    return static_cast<int32_t>(hash % 1000);
  }

  void run(const std::vector<ScheduledRows>& step, Scheduler& scheduler) {
    for (const auto& rows : step)  // all rows are written before any is read
      for (int64_t i = rows.first; i < rows.first + rows.count; ++i) slot(*rows.sequence, i) = rows.sequence->tokens[i];
    for (const auto& rows : step) {
      if (!rows.samples) continue;
      std::vector<int32_t> seen;
      for (int64_t i = 0; i < rows.first + rows.count; ++i) seen.push_back(slot(*rows.sequence, i));
      scheduler.append(rows.sequence, next_token(seen));
    }
  }

 private:
  int32_t& slot(const Sequence& s, int64_t i) { return slots_.at(s.pages.at(i / size_) * size_ + i % size_); }
  int64_t size_;
  std::vector<int32_t> slots_;
};

std::unique_ptr<Sequence> make_sequence(int64_t id, std::vector<int32_t> prompt, int64_t max_tokens) {
  auto s = std::make_unique<Sequence>();
  s->id = id;
  s->prompt_tokens = static_cast<int64_t>(prompt.size());
  s->tokens = std::move(prompt);
  s->max_tokens = max_tokens;
  return s;
}

struct Served {
  int64_t steps = 0, rows = 0, preemptions = 0;
};

// Runs all sequences to their end and checks every step and every token.
Served serve(const SchedulerOptions& options, std::vector<std::unique_ptr<Sequence>>& sequences,
             const std::function<int64_t(int64_t step)>& arrivals = [](int64_t) { return int64_t{1} << 30; }) {
  Scheduler scheduler(options);
  PagedModel model(options);
  Served served;
  size_t arrived = 0;
  while (arrived < sequences.size() || !scheduler.idle()) {
    for (int64_t n = arrivals(served.steps); n > 0 && arrived < sequences.size(); --n)
      scheduler.add(sequences[arrived++].get());
    const auto step = scheduler.next();
    int64_t rows = 0;
    std::set<const Sequence*> seen;
    for (const auto& r : step) {
      EXPECT_TRUE(seen.insert(r.sequence).second) << "a sequence stands twice in a step";
      EXPECT_GT(r.count, 0);
      EXPECT_LE(r.count, std::max(options.chunk, 1));
      EXPECT_EQ(r.samples, r.first + r.count == static_cast<int64_t>(r.sequence->tokens.size()));
      rows += r.count;
    }
    EXPECT_LE(rows, options.max_rows);
    EXPECT_LE(step.size(), static_cast<size_t>(options.max_batch));
    EXPECT_TRUE(scheduler.idle() || rows > 0) << "a step without progress";
    if (!scheduler.idle() && rows == 0) return served;
    model.run(step, scheduler);
    served.rows += rows;
    ++served.steps;
    for (const auto& r : step)
      if (r.samples && r.sequence->made_tokens() == r.sequence->max_tokens) scheduler.finish(r.sequence);
    const auto use = scheduler.page_use();
    EXPECT_GE(use.used(), 0);
    EXPECT_LE(use.free + use.cached, use.total);
  }
  EXPECT_EQ(scheduler.page_use().used(), 0) << "pages leaked";
  for (const auto& s : sequences) {
    EXPECT_EQ(s->made_tokens(), s->max_tokens);
    for (auto n = s->prompt_tokens; n < static_cast<int64_t>(s->tokens.size()); ++n)
      EXPECT_EQ(s->tokens[n], PagedModel::next_token({s->tokens.begin(), s->tokens.begin() + n}));
    served.preemptions += s->preemptions;
  }
  return served;
}

TEST(Scheduler, SharedPromptIsComputedOnce) {
  SchedulerOptions options{.page_size = 4, .num_pages = 100, .max_batch = 8, .max_rows = 256, .chunk = 256};
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (int i = 0; i < 6; ++i) {
    auto prompt = counting(41);
    for (int k = 0; k < 5; ++k) prompt.push_back(1000 * i + k);
    sequences.push_back(make_sequence(i, prompt, 3));
  }
  const Served served = serve(options, sequences);
  EXPECT_EQ(served.steps, 3);                       // all six start in the first step
  EXPECT_EQ(served.rows, 46 + 5 * 6 + 6 * 2);       // 40 of the 41 tokens are shared
  for (int i = 1; i < 6; ++i) EXPECT_EQ(sequences[i]->shared_tokens, 40);
}

TEST(Scheduler, WaitsForAPrefixThatIsBeingComputed) {
  SchedulerOptions options{.page_size = 4, .num_pages = 100, .max_batch = 8, .max_rows = 64, .chunk = 16};
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (int i = 0; i < 2; ++i) {
    auto prompt = counting(64);
    prompt.push_back(1000 + i);
    sequences.push_back(make_sequence(i, prompt, 1));
  }
  EXPECT_EQ(serve(options, sequences).rows, 66);
  EXPECT_EQ(sequences[1]->shared_tokens, 64);
}

TEST(Scheduler, PreemptsTheYoungestAndLosesNobody) {
  SchedulerOptions options{.page_size = 2, .num_pages = 12, .max_batch = 8, .max_rows = 64, .chunk = 16};
  for (const bool share : {false, true}) {
    options.share_prefixes = share;
    std::vector<std::unique_ptr<Sequence>> sequences;
    for (int i = 0; i < 4; ++i) sequences.push_back(make_sequence(i, counting(4, 100 * i), 16));
    EXPECT_GT(serve(options, sequences).preemptions, 0);
    EXPECT_EQ(sequences[0]->preemptions, 0);
  }
}

TEST(Scheduler, RefusesWhatCanNeverRun) {
  const Scheduler scheduler({.page_size = 4, .num_pages = 4});
  EXPECT_EQ(scheduler.reason_to_refuse(10, 6), "");
  EXPECT_EQ(scheduler.reason_to_refuse(10, 7),
            "10 prompt tokens and 7 to be made need 5 KV pages of 4 tokens, there are 4");
}

TEST(Scheduler, FinishInAnyState) {
  Scheduler scheduler({.page_size = 4, .num_pages = 8, .max_batch = 1, .max_rows = 8, .chunk = 4});
  auto a = make_sequence(0, counting(10), 4), b = make_sequence(1, counting(10), 4);
  scheduler.add(a.get());
  scheduler.add(b.get());
  EXPECT_EQ(scheduler.next().size(), 1u);
  scheduler.finish(b.get());  // waiting
  scheduler.finish(a.get());  // in the middle of its prompt
  EXPECT_TRUE(scheduler.idle());
  EXPECT_EQ(scheduler.page_use().used(), 0);
  EXPECT_TRUE(scheduler.next().empty());
}

// Any mixture of prompts (with common beginnings), arrivals, page sizes and shortages: every request gets exactly the
// tokens that it gets alone.
TEST(Scheduler, AnyLoad) {
  EXPECT_TRUE(rc::check([] {
    std::mt19937 random(*rc::gen::arbitrary<uint32_t>());
    const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
    SchedulerOptions options;
    options.page_size = pick(1, 5);
    options.max_batch = pick(1, 6);
    options.max_rows = pick(options.max_batch, 40);
    options.chunk = pick(1, 20);
    options.share_prefixes = pick(0, 3) != 0;
    std::vector<std::unique_ptr<Sequence>> sequences;
    int64_t longest = 0;
    for (int i = 0, n = pick(1, 10); i < n; ++i) {
      std::vector<int32_t> prompt = counting(pick(0, 15), 100 * pick(0, 1));
      for (int k = pick(1, 6); k > 0; --k) prompt.push_back(pick(0, 2));
      sequences.push_back(make_sequence(i, prompt, pick(1, 12)));
      longest = std::max(longest, sequences.back()->prompt_tokens + sequences.back()->max_tokens);
    }
    options.num_pages = static_cast<int32_t>((longest + options.page_size - 1) / options.page_size) + pick(0, 8);
    serve(options, sequences, [&](int64_t) { return pick(0, 2); });
    RC_ASSERT(!::testing::Test::HasFailure());
  }));
}

}  // namespace
}  // namespace fulmen::engine
