// Attention where it is easiest to be wrong: faults in data that only a device would hold, NaN in slots that nobody
// sees, pools beyond 2^31 elements, borders of chunks and prefixes, random shapes, and the same bits on any threads.
#include <sys/mman.h>

#include "ops/attention_scene.hpp"

namespace {

using namespace testing_ops;

Request request(int qo_len, int kv_len, int id) {
  Request r;
  r.qo_len = qo_len, r.kv_len = kv_len, r.id = id;
  return r;
}

bool all_nan(Scene& s, int index) {
  int64_t row = 0;
  for (int i = 0; i < index; ++i) row += s.requests[static_cast<size_t>(i)].qo_len;
  const int64_t per_row = static_cast<int64_t>(s.options.qo_heads) * s.options.vo_dim;
  for (int64_t i = row * per_row; i < (row + s.requests[static_cast<size_t>(index)].qo_len) * per_row; ++i) {
    if (!std::isnan(s.o.get(i))) return false;
  }
  for (int64_t i = row * s.options.qo_heads; i < (row + s.requests[static_cast<size_t>(index)].qo_len) * s.options.qo_heads; ++i) {
    if (!std::isnan(s.lse.get(i))) return false;
  }
  return true;
}

// A page that isn't in the pool: its request is NaN whether the page is a part of a chunk, a whole one or several; the
// others keep their bits; the record tells which.
TEST(AttentionFaults, PageOutsideThePool) {
  for (const int64_t target : simd_targets()) {
    const SimdTarget use(target);
    Context context(2);
    for (const int dtype : {FULMEN_F32, FULMEN_BF16}) {
      for (const int page_size : {1, 64, 256, 257, 512}) {
        SceneOptions options;
        options.dtype = dtype;
        options.page_size = page_size;
        options.causal = false;
        options.qo_heads = 4, options.kv_heads = 2;
        const std::vector<Request> requests = {request(2, 900, 1), request(dtype == FULMEN_BF16 ? 1 : 9, 1100, 2), request(1, 40, 3)};
        Scene good(options, requests);
        good.run(context);
        for (const int page : {0, 1023 / page_size, 1099 / page_size}) {
          const int64_t id = page % 2 ? -1 : int64_t{1} << 30;
          SCOPED_TRACE(testing::Message() << name_of(dtype) << ", page size " << page_size << ", page " << page << ", target " << target);
          Scene bad(options, requests);
          bad.set_page(0, 1, page, id);
          const auto record = bad.run(context);
          EXPECT_EQ(record.fault, FULMEN_FAULT_PAGE);
          EXPECT_EQ(record.request, 1);
          EXPECT_EQ(record.value, id);
          EXPECT_TRUE(all_nan(bad, 1));
          EXPECT_EQ(bad.bits(0), good.bits(0));
          EXPECT_EQ(bad.bits(2), good.bits(2));
        }
      }
    }
  }
}

TEST(AttentionFaults, LengthsBeyondAllReason) {
  Context context(2);
  for (const bool i64 : {false, true}) {
    SceneOptions options;
    options.index_i64 = i64;
    const std::vector<Request> requests = {request(2, 300, 1), request(3, 70, 2), request(1, 40, 3)};
    Scene good(options, requests);
    good.run(context);
    const int64_t most = i64 ? INT64_MAX : INT32_MAX, least = i64 ? INT64_MIN : INT32_MIN;
    for (const int64_t value : {int64_t{-1}, int64_t{301}, most, least}) {
      Scene bad(options, requests);
      bad.put(bad.kv_len(0), 1, value);
      const auto record = bad.run(context);
      EXPECT_EQ(record.fault, FULMEN_FAULT_KV_LEN);
      EXPECT_EQ(record.request, 1);
      EXPECT_EQ(record.value, value);
      EXPECT_TRUE(all_nan(bad, 1)) << value;
      EXPECT_EQ(bad.bits(0), good.bits(0));
      EXPECT_EQ(bad.bits(2), good.bits(2));
    }
    for (const int64_t value : {int64_t{-7}, int64_t{1}, int64_t{100}, most, least}) {  // qo_indptr[1] is 2
      Scene bad(options, requests);
      bad.put(bad.qo_indptr(0), 2, value);  // 5: the end of request 1
      const auto record = bad.run(context);
      EXPECT_EQ(record.fault, FULMEN_FAULT_QO_INDPTR) << value;
      EXPECT_EQ(bad.bits(0), good.bits(0)) << value;
    }
  }
}

// A table that is too narrow for the length: NaN and a record, nothing read beyond.
TEST(AttentionFaults, TableTooShort) {
  Context context(2);
  for (const bool csr : {false, true}) {
    SceneOptions options;
    options.csr = csr;
    Scene scene(options, {request(1, 100, 1), request(1, 33, 2)});
    Scene good(options, {request(1, 100, 1), request(1, 33, 2)});
    good.run(context);
    scene.put(scene.kv_len(0), 1, 100);  // 3 pages are listed (CSR) or the others are poisoned (2-D)
    const auto record = scene.run(context);
    EXPECT_EQ(record.fault, FULMEN_FAULT_PAGE);
    EXPECT_EQ(record.request, 1);
    EXPECT_TRUE(all_nan(scene, 1));
    EXPECT_EQ(scene.bits(0), good.bits(0));
  }
}

// NaN where nobody looks is in every scene (padding is poisoned); here it is in keys that a window or the mask hides.
TEST(AttentionEdges, HiddenKeysMayBeNaN) {
  Context context(2);
  for (const int dtype : {FULMEN_F32, FULMEN_F16, FULMEN_BF16}) {
    for (const bool hnd : {false, true}) {
      SceneOptions options;
      options.dtype = dtype;
      options.hnd = hnd;
      options.window_left = 70;
      options.page_size = 8;
      const std::vector<Request> requests = {request(3, 500, 1), request(1, 90, 2)};
      Scene good(options, requests), bad(options, requests);
      good.run(context);
      // Pages wholly before the window are never read; the first one inside it has hidden keys.
      for (int page = 0; page < (500 - 3 - 70) / 8; ++page) bad.set_page(0, 0, page, -5);
      EXPECT_EQ(bad.run(context).fault, FULMEN_FAULT_NONE);
      EXPECT_EQ(bad.bits(0), good.bits(0));
      EXPECT_EQ(bad.bits(1), good.bits(1));
    }
  }
}

TEST(AttentionEdges, RandomShapesMatchTheReference) {
  Context context(3);
  std::mt19937 random(20);
  const auto pick = [&](int low, int high) { return low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1)); };
  const int group_sizes[] = {1, 2, 3, 5, 7, 8, 16, 31, 64, 127, 128};
  for (int round = 0; round < 90; ++round) {
    SceneOptions options;
    options.dtype = std::array{FULMEN_F32, FULMEN_F16, FULMEN_BF16}[static_cast<size_t>(round % 3)];
    options.qk_dim = 8 * (1 + round % 32);
    options.vo_dim = 8 * pick(1, 32);
    options.kv_heads = pick(1, 2);
    options.qo_heads = options.kv_heads * group_sizes[round % 11];
    options.page_size = round % 7 == 0 ? 0 : std::array{1, 2, 3, 5, 16, 63, 64, 65, 128, 255, 256, 257}[random() % 12];
    options.causal = random() % 4 != 0;
    options.window_left = random() % 3 == 0 ? pick(0, 300) : -1;
    options.hnd = random() % 2;
    options.odd_strides = random() % 2;
    options.csr = random() % 2;
    options.index_i64 = random() % 2;
    options.pages_and_last = random() % 3 == 0;
    options.own_v_table = options.page_size > 0 && random() % 3 == 0;
    options.custom_mask = random() % 4 == 0;
    options.alibi = random() % 4 == 0;
    options.sinks = random() % 4 == 0;
    if (random() % 4 == 0) options.soft_cap = 4.0f;
    options.rope = random() % 4 == 0;
    options.k_scale = std::array{1.0, 1e-4, 40.0}[random() % 3];
    std::vector<Request> requests;
    const int budget = options.qo_heads > 60 ? 260 : 600;
    for (int i = pick(1, 3); i > 0; --i) {
      const int borders[] = {1, 63, 64, 65, 255, 256, 257, pick(1, budget), pick(1, budget)};
      const int kv = std::min(borders[random() % 9], budget);
      requests.push_back(request(random() % 2 ? 1 : pick(0, options.qo_heads > 60 ? 3 : 20), kv, i));
    }
    SCOPED_TRACE(testing::Message() << "round " << round << ": qk " << options.qk_dim << ", vo " << options.vo_dim << ", heads "
                                    << options.qo_heads << "/" << options.kv_heads << ", page " << options.page_size << ", "
                                    << name_of(options.dtype));
    Scene scene(options, requests);
    EXPECT_EQ(scene.run(context).fault, FULMEN_FAULT_NONE);
    scene.expect_close_to_reference("random");
    if (HasFailure()) return;
  }
}

// Rows before the first key stand at negative positions: RoPE turns them back.
TEST(AttentionEdges, RopeAtNegativePositions) {
  Context context(2);
  for (const bool interleaved : {false, true}) {
    SceneOptions options;
    options.qk_dim = 64;
    options.causal = false;
    options.rope = true;
    options.rope_interleaved = interleaved;
    Scene scene(options, {request(20, 7, 1), request(300, 1, 2), request(2, 2, 3)});
    EXPECT_EQ(scene.run(context).fault, FULMEN_FAULT_NONE);
    scene.expect_close_to_reference("negative positions");
  }
}

// Prefixes that end at, before and after the borders of key blocks and chunks, with rows on both sides.
TEST(AttentionEdges, PrefixBorders) {
  Context context(3);
  for (const int prefix : {1, 63, 64, 65, 255, 256, 257, 511, 512, 513}) {
    for (const int own : {0, 1, 64, 255, 256, 257}) {
      SceneOptions options;
      options.share_prefix = true;
      options.page_size = 16;
      options.qo_heads = 2;
      std::vector<Request> requests;
      for (int i = 0; i < 3; ++i) {
        Request r = request(i == 1 ? 9 : 1, prefix + own, i + 1);
        r.prefix_id = 1, r.prefix_len = prefix;
        requests.push_back(r);
      }
      SCOPED_TRACE(testing::Message() << "prefix " << prefix << ", own " << own);
      Scene shared(options, requests);
      EXPECT_EQ(shared.run(context).fault, FULMEN_FAULT_NONE);
      shared.expect_close_to_reference("prefix");
      options.share_prefix = false;
      Scene apart(options, requests);
      apart.run(context);
      for (int i = 0; i < 3; ++i) EXPECT_EQ(shared.bits(i), apart.bits(i)) << "request " << i;
      if (HasFailure()) return;
    }
  }
}

TEST(AttentionEdges, SameBitsOnAnyThreads) {
  for (const bool share : {false, true}) {
    for (const int dtype : {FULMEN_F32, FULMEN_F16, FULMEN_BF16}) {
      SceneOptions options;
      options.dtype = dtype;
      options.share_prefix = share;
      options.qo_heads = 6, options.kv_heads = 2, options.qk_dim = 32, options.vo_dim = 32;
      options.sinks = true;
      std::vector<Request> requests;
      for (int i = 0; i < 4; ++i) {
        Request r = request(1 + 13 * (i % 3), 700 + 111 * i, i + 1);
        r.prefix_id = 1, r.prefix_len = 600;
        requests.push_back(r);
      }
      std::vector<std::vector<unsigned char>> first;
      for (const int threads : {1, 2, 3, 5, 16}) {
        for (const int sms : {0, 1, 7}) {
          Context context(threads);
          options.num_sms = sms;
          Scene scene(options, requests);
          scene.run(context);
          for (int i = 0; i < 4; ++i) {
            if (first.size() < 4) {
              first.push_back(scene.bits(i));
            } else {
              EXPECT_EQ(scene.bits(i), first[static_cast<size_t>(i)]) << threads << " threads, " << sms << " sms, request " << i;
            }
          }
        }
      }
    }
  }
}

// A pool of 5 GB and 2.6 * 10^9 elements of which a few pages exist: 32-bit arithmetic anywhere would miss them.
TEST(AttentionEdges, PoolBeyond2To31Elements) {
  constexpr int64_t kPages = 160001, kPageSize = 64, kHeads = 2, kDim = 128;
  constexpr int64_t kPageElements = kPageSize * kHeads * kDim;
  static_assert(kPages * kPageElements > int64_t{1} << 31);
  const size_t bytes = static_cast<size_t>(kPages * kPageElements * 2);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) GTEST_SKIP() << "no 5 GB of address space";
  auto* pool = static_cast<uint16_t*>(memory);
  Context context(2);
  std::mt19937_64 random(3);
  Tensor k(FULMEN_BF16, {150, kHeads, kDim}), q(FULMEN_BF16, {1, 4, kDim}), far(FULMEN_BF16, {1, 4, kDim}), near(FULMEN_BF16, {1, 4, kDim});
  k.fill_normal(random), q.fill_normal(random);
  const auto cache = [&](int64_t pages) {
    fulmen_tensor t{};
    t.data = pool, t.dtype = FULMEN_BF16, t.ndim = 4;
    const int64_t shape[] = {pages, kPageSize, kHeads, kDim}, stride[] = {kPageElements, kHeads * kDim, kDim, 1};
    std::copy(shape, shape + 4, t.shape), std::copy(stride, stride + 4, t.stride);
    return t;
  };
  const auto attend = [&](std::vector<int32_t> pages, Tensor& out) {
    Tensor table(FULMEN_I32, {1, 3}), qo(FULMEN_I32, {2}), kv_len(FULMEN_I32, {1});
    for (int i = 0; i < 3; ++i) table.set_integer<int32_t>(i, pages[static_cast<size_t>(i)]);
    qo.set_integer<int32_t>(0, 0), qo.set_integer<int32_t>(1, 1), kv_len.set_integer<int32_t>(0, 150);
    Tensor tokens(FULMEN_I32, {2});
    tokens.set_integer<int32_t>(0, 0), tokens.set_integer<int32_t>(1, 150);
    FULMEN_INIT(fulmen_append_kv_args, append);
    append.k = append.v = k.view();
    append.k_cache = cache(kPages);
    append.v_cache = cache(kPages);
    append.qo_indptr = tokens.view();
    append.kv_len = kv_len.view();
    append.table.table = table.view();
    // V's pages behind K's first hundred: most lie in both.
    append.v_cache.data = pool + 100 * kPageElements;
    append.v_cache.shape[0] = append.k_cache.shape[0] = kPages - 100;
    EXPECT_EQ(fulmen_append_kv(context, &append, nullptr), FULMEN_INVALID_ARGUMENT) << "caches overlap";
    // One cache of half the pages each, interleaved: a stride of two pages.
    append.k_cache.shape[0] = append.v_cache.shape[0] = kPages / 2;
    append.k_cache.stride[0] = append.v_cache.stride[0] = 2 * kPageElements;
    append.v_cache.data = pool + kPageElements;
    EXPECT_FULMEN_OK(fulmen_append_kv(context, &append, nullptr));
    FULMEN_INIT(fulmen_attention_spec, spec);
    spec.q_dtype = spec.kv_dtype = spec.o_dtype = FULMEN_BF16;
    spec.head_dim_qk = spec.head_dim_vo = kDim;
    FULMEN_INIT(fulmen_attention_limits, limits);
    limits.max_requests = limits.max_rows = 1, limits.max_kv_len = 200, limits.num_groups = 1;
    limits.groups[0] = {sizeof(fulmen_attention_group), 4, kHeads, 1, -1};
    fulmen_attention* attention = nullptr;
    ASSERT_EQ(fulmen_attention_create(context, &spec, &limits, &attention), FULMEN_OK) << fulmen_last_error();
    FULMEN_INIT(fulmen_attention_sizes, sizes);
    fulmen_attention_sizes_of(attention, &sizes);
    std::vector<char> bytes_of_run(sizes.plan_bytes + sizes.scratch_bytes + 256);
    char* plan = bytes_of_run.data() + (256 - reinterpret_cast<uintptr_t>(bytes_of_run.data()) % 256) % 256;
    FULMEN_INIT(fulmen_attention_lengths, lengths);
    lengths.levels[0].qo_indptr = qo.view();
    lengths.levels[0].kv_len = kv_len.view();
    EXPECT_FULMEN_OK(fulmen_attention_plan(attention, &lengths, plan, nullptr));
    FULMEN_INIT(fulmen_attention_tensors, t);
    t.page_size = kPageSize;
    t.q = q.view(), t.o = out.view(), t.k = append.k_cache, t.v = append.v_cache;
    t.kv[0].table = table.view();
    EXPECT_FULMEN_OK(fulmen_attention_run(attention, &t, plan, plan + sizes.plan_bytes, nullptr));
    fulmen_attention_destroy(attention);
  };
  attend({0, 1, 2}, near);
  attend({kPages / 2 - 1, 7, kPages / 2 - 2}, far);
  EXPECT_EQ(near.values(), far.values());
  for (const double x : near.values()) ASSERT_TRUE(std::isfinite(x));
  munmap(memory, bytes);
}

}  // namespace
