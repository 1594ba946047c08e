// A request's bits depend on its queries, keys and positions only: not on runs, threads, workers, neighbours, how its
// prompt was cut, or whether its prefix is shared.
#include "ops/attention_scene.hpp"

namespace {

using namespace testing_ops;

class AttentionBits : public testing::TestWithParam<int> {
 protected:
  SceneOptions options() const {
    SceneOptions o;
    o.dtype = GetParam();
    o.qo_heads = 4, o.kv_heads = 2, o.qk_dim = 24, o.vo_dim = 16;
    return o;
  }
  // A request of id with `rows` queries ending at `length`, out of a sequence of keys that don't depend on either.
  static Request part(int id, int rows, int length, int prefix = 0) {
    Request r;
    r.id = id, r.qo_len = rows, r.kv_len = length;
    if (prefix) r.prefix_id = 1, r.prefix_len = prefix;
    return r;
  }
};

std::vector<unsigned char> run_and_take(const SceneOptions& options, std::vector<Request> requests, int index,
                                        int threads = 2, int from = 0, int to = -1) {
  Context context(threads);
  Scene scene(options, std::move(requests));
  scene.run(context);
  return scene.bits(index, from, to);
}

TEST_P(AttentionBits, RunsThreadsAndWorkers) {
  const std::vector<Request> list = {part(1, 3, 1500), part(2, 1, 4000), part(3, 70, 70), part(4, 1, 257)};
  const auto first = run_and_take(options(), list, 1);
  EXPECT_EQ(first, run_and_take(options(), list, 1));
  for (const int threads : {1, 3, 7}) EXPECT_EQ(first, run_and_take(options(), list, 1, threads)) << threads;
}

TEST_P(AttentionBits, AloneOrAmongOthers) {
  const auto alone = run_and_take(options(), {part(7, 5, 1300)}, 0);
  EXPECT_EQ(alone, run_and_take(options(), {part(1, 1, 3000), part(7, 5, 1300), part(2, 200, 200)}, 1));
  EXPECT_EQ(alone, run_and_take(options(), {part(7, 5, 1300), part(9, 1, 1)}, 0, 1));
}

TEST_P(AttentionBits, PromptInPieces) {
  constexpr int kLength = 270;
  for (const bool variants : {false, true}) {
    SceneOptions o = options();
    if (variants) o.window_left = 100, o.soft_cap = 4.0f, o.alibi = o.sinks = true;
    const auto whole = run_and_take(o, {part(1, kLength, kLength)}, 0);
    for (const int chunk : {1, 63, 64, 65}) {
      std::vector<unsigned char> pieces;
      Context context(2);
      for (int done = 0; done < kLength; done += chunk) {
        const int end = std::min(kLength, done + chunk);
        Scene scene(o, {part(1, end - done, end)});
        scene.run(context);
        const auto bits = scene.bits(0);
        pieces.insert(pieces.end(), bits.begin(), bits.end());
      }
      EXPECT_EQ(whole, pieces) << "chunks of " << chunk;
    }
  }
}

TEST_P(AttentionBits, DecodeIsPrefillsLastRow) {
  for (const int length : {1, 64, 255, 256, 257, 1025, 2000}) {
    const int rows = std::min(length, 150);
    const auto prefill = run_and_take(options(), {part(1, rows, length)}, 0, 2, rows - 1);
    EXPECT_EQ(prefill, run_and_take(options(), {part(1, 1, length)}, 0)) << length;
  }
}

TEST_P(AttentionBits, PrefixSharedOrFlat) {
  for (const int prefix : {100, 256, 1300}) {
    for (const int window : {-1, 500}) {
      SceneOptions flat = options();
      flat.window_left = window;
      SceneOptions shared = flat;
      shared.share_prefix = true;
      std::vector<Request> list;
      for (int i = 0; i < 6; ++i) list.push_back(part(i + 1, i == 4 ? 20 : 1, prefix + 1 + 250 * i, prefix));
      list[4].qo_len = 20;
      list[4].kv_len = std::max(list[4].kv_len, prefix + 20);
      for (int i = 0; i < 6; ++i) {
        EXPECT_EQ(run_and_take(flat, {list[static_cast<size_t>(i)]}, 0), run_and_take(shared, list, i, 3))
            << "request " << i << ", prefix " << prefix << ", window " << window;
      }
    }
  }
}

TEST_P(AttentionBits, PagesDontMatter) {
  SceneOptions o = options();
  const std::vector<Request> list = {part(1, 3, 700), part(2, 100, 300)};
  const auto bits = run_and_take(o, list, 0);
  o.page_size = 1;
  EXPECT_EQ(bits, run_and_take(o, list, 0));
  o.page_size = 0;
  EXPECT_EQ(bits, run_and_take(o, list, 0));
  o.page_size = 64, o.hnd = true, o.csr = true;
  EXPECT_EQ(bits, run_and_take(o, list, 0));
}

// Infinities and NaN in keys and values that a row doesn't see don't reach it.
TEST_P(AttentionBits, HiddenValuesCantLeak) {
  for (const int qo_len : {3, 40}) {
    Context context(2);
    SceneOptions o = options();
    o.page_size = 64;
    Scene clean(o, {part(1, qo_len, 64)});
    clean.run(context);
    Scene dirty(o, {part(1, qo_len, 64)});
    // The last key: only the last row sees it.
    for (Tensor* t : {&dirty.k, &dirty.v}) {
      for (int64_t i = 0; i < t->size(); ++i) {
        const int64_t dim = t->shape()[3], token = i / (dim * o.kv_heads) % 64;
        if (token == 63) t->set(i, t == &dirty.k ? NAN : INFINITY);
      }
    }
    dirty.run(context);
    EXPECT_EQ(clean.bits(0, 0, qo_len - 1), dirty.bits(0, 0, qo_len - 1)) << qo_len;
    EXPECT_TRUE(std::isnan(dirty.o.get(dirty.o.size() - 1)));
  }
}

class AttentionFaults : public AttentionBits {};

void expect_all_nan(Scene& scene, int64_t row, int64_t rows) {
  const int64_t width = static_cast<int64_t>(scene.options.qo_heads) * scene.options.vo_dim;
  for (int64_t i = row * width; i < (row + rows) * width; ++i) ASSERT_TRUE(std::isnan(scene.o.get(i))) << i;
  for (int64_t i = row * scene.options.qo_heads; i < (row + rows) * scene.options.qo_heads; ++i) {
    ASSERT_TRUE(std::isnan(scene.lse.get(i))) << i;
  }
}

TEST_P(AttentionFaults, TheOffenderIsNanAndOthersKeepTheirBits) {
  Context context(2);
  const std::vector<Request> list = {part(1, 2, 600), part(2, 3, 300), part(3, 1, 900)};
  Scene good(options(), list);
  EXPECT_EQ(good.run(context).fault, FULMEN_FAULT_NONE);
  const auto expect_others = [&](Scene& bad) {
    expect_all_nan(bad, 2, 3);
    EXPECT_EQ(good.bits(0), bad.bits(0));
    EXPECT_EQ(good.bits(2), bad.bits(2));
  };
  for (const int64_t length : {int64_t{-5}, int64_t{1} << 30}) {
    Scene bad(options(), list);
    bad.put(bad.kv_len(0), 1, length);
    const auto record = bad.run(context);
    EXPECT_EQ(record.fault, FULMEN_FAULT_KV_LEN);
    EXPECT_EQ(record.request, 1);
    EXPECT_EQ(record.value, length);
    EXPECT_EQ(record.limit, 900);
    expect_others(bad);
  }
  for (const int64_t id : {int64_t{-1}, int64_t{1} << 29}) {
    for (const bool csr : {false, true}) {
      SceneOptions o = options();
      o.csr = csr;
      Scene bad(o, list);
      bad.set_page(0, 1, 0, id);
      const auto record = bad.run(context);
      EXPECT_EQ(record.fault, FULMEN_FAULT_PAGE);
      EXPECT_EQ(record.request, 1);
      EXPECT_EQ(record.value, id);
      expect_others(bad);
    }
  }
}

TEST_P(AttentionFaults, OffsetsThatDecreaseOrLeaveTheLimits) {
  Context context(2);
  const std::vector<Request> list = {part(1, 2, 600), part(2, 3, 300), part(3, 1, 900)};
  Scene good(options(), list);
  good.run(context);
  for (const int64_t entry : {int64_t{1}, int64_t{1} << 30, int64_t{-7}}) {
    Scene bad(options(), list);
    bad.put(bad.qo_indptr(0), 2, entry);  // where request 1 ends and request 2 begins
    const auto record = bad.run(context);
    EXPECT_EQ(record.fault, FULMEN_FAULT_QO_INDPTR);
    EXPECT_EQ(record.request, 1);
    EXPECT_EQ(record.value, entry);
    EXPECT_EQ(good.bits(0), bad.bits(0));
    expect_all_nan(bad, 2, 4);
  }
}

TEST_P(AttentionFaults, MaskOutOfBounds) {
  Context context(2);
  SceneOptions o = options();
  o.custom_mask = true;
  const std::vector<Request> list = {part(1, 2, 600), part(2, 3, 300), part(3, 1, 900)};
  Scene good(o, list);
  good.run(context);
  Scene bad(o, list);
  bad.put(bad.mask_indptr(), 3, 1000000);  // request 2's bits would end past the tensor
  const auto record = bad.run(context);
  EXPECT_EQ(record.fault, FULMEN_FAULT_KV_LEN);
  EXPECT_EQ(record.request, 2);
  EXPECT_EQ(good.bits(0), bad.bits(0));
  EXPECT_EQ(good.bits(1), bad.bits(1));
  expect_all_nan(bad, 5, 1);
}

TEST_P(AttentionFaults, EntriesThatNobodySeesAreNotRead) {
  Context context(2);
  SceneOptions o = options();
  o.window_left = 20;
  const std::vector<Request> list = {part(1, 2, 600)};
  Scene good(o, list);
  good.run(context);
  Scene bad(o, list);
  for (int page = 0; page < (600 - 2 - 20) / 16; ++page) bad.set_page(0, 0, page, -12345);
  EXPECT_EQ(bad.run(context).fault, FULMEN_FAULT_NONE);
  EXPECT_EQ(good.bits(0), bad.bits(0));
}

TEST(AttentionErrors, NameTheArgument) {
  Context context(1);
  Scene scene({}, {Request{}});
  const auto expect = [&](const char* text, auto change) {
    auto spec = scene.spec();
    auto limits = scene.limits();
    auto lengths = scene.lengths();
    auto tensors = scene.tensors();
    change(spec, limits, lengths, tensors);
    fulmen_attention* attention = nullptr;
    fulmen_status status = fulmen_attention_create(context, &spec, &limits, &attention);
    std::vector<unsigned char> plan(1 << 16), scratch;
    if (status == FULMEN_OK) {
      FULMEN_INIT(fulmen_attention_sizes, sizes);
      fulmen_attention_sizes_of(attention, &sizes);
      scratch.resize(sizes.scratch_bytes + 256);
      void* aligned = scratch.data() + (256 - reinterpret_cast<uintptr_t>(scratch.data()) % 256) % 256;
      status = fulmen_attention_plan(attention, &lengths, plan.data(), nullptr);
      if (status == FULMEN_OK) status = fulmen_attention_run(attention, &tensors, plan.data(), aligned, nullptr);
    }
    EXPECT_NE(status, FULMEN_OK) << text;
    EXPECT_NE(std::string(fulmen_last_error()).find(text), std::string::npos) << fulmen_last_error() << " lacks " << text;
    fulmen_attention_destroy(attention);
  };
  expect("head_dim_qk", [](auto& s, auto&, auto&, auto&) { s.head_dim_qk = 12; });
  expect("max_rows", [](auto&, auto& l, auto&, auto&) { l.max_rows = 0; });
  expect("window_left", [](auto&, auto& l, auto&, auto&) { l.groups[0].window_left = -2; });
  expect("levels[0].qo_indptr: expected at most 1 segments", [](auto&, auto&, auto& n, auto&) {
    static int32_t three[] = {0, 1, 1};
    n.levels[0].qo_indptr.data = three;
    n.levels[0].qo_indptr.shape[0] = 3;
  });
  expect("levels[0].kv_len", [](auto&, auto&, auto& n, auto&) { n.levels[0].kv_len.dtype = FULMEN_F32; });
  expect("q: expected bf16, found f32", [](auto& s, auto&, auto&, auto&) { s.q_dtype = s.kv_dtype = s.o_dtype = FULMEN_BF16; });
  expect("o: expected [num_rows = 1, 2, 16], found [1, 2, 8]", [](auto&, auto&, auto&, auto& t) { t.o.shape[2] = 8; });
  expect("kv[0].table", [](auto&, auto&, auto&, auto& t) { t.kv[0].table = fulmen_tensor{}; });
  expect("group: expected 0 to 0", [](auto&, auto&, auto&, auto& t) { t.group = 1; });
  expect("logits_soft_cap", [](auto&, auto&, auto&, auto& t) { t.logits_soft_cap = 3.0f; });
  expect("page_size", [](auto&, auto&, auto&, auto& t) { t.page_size = 0; });
}

INSTANTIATE_TEST_SUITE_P(Dtypes, AttentionBits, testing::Values(FULMEN_F32, FULMEN_F16, FULMEN_BF16),
                         [](const auto& info) { return name_of(info.param); });
INSTANTIATE_TEST_SUITE_P(Dtypes, AttentionFaults, testing::Values(FULMEN_F32, FULMEN_BF16),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
