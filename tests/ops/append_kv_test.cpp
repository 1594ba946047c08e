// append_kv: every element lands where the tables say and nowhere else.
#include <numeric>

#include "ops/tensors.hpp"

namespace {

using namespace testing_ops;

struct Case {
  const char* name;
  int page_size;
  bool hnd, csr, i64, row_index, pages_and_last, odd_strides;
  std::vector<int> qo_len, kv_len;  // kv_len with the new tokens
};

const Case kCases[] = {
    {"one token", 16, false, false, false, false, false, false, {1}, {1}},
    {"page of one", 1, false, false, false, false, false, false, {3, 0, 2}, {3, 5, 9}},
    {"page boundary, HND", 4, true, false, false, false, false, false, {4, 1, 5}, {4, 5, 9}},
    {"CSR i64", 5, false, true, true, false, false, true, {2, 7}, {12, 7}},
    {"CSR, last page", 5, true, true, false, false, true, true, {2, 7, 0}, {12, 7, 0}},
    {"row_index", 3, false, false, true, true, false, true, {6, 1}, {8, 30}},
};

class AppendKv : public testing::TestWithParam<int> {};

struct Caches {
  Tensor k, v;
};
Caches make_caches(const Case& c, int dtype, int64_t pages, int64_t heads, int64_t dk, int64_t dv) {
  const int64_t extra = c.odd_strides ? 3 : 0, page = c.page_size;
  const auto make = [&](int64_t d) {
    const int64_t row = d + extra;
    return c.hnd ? Tensor(dtype, {pages, page, heads, d}, {heads * page * row + extra, row, page * row, 1})
                 : Tensor(dtype, {pages, page, heads, d}, {page * heads * row + extra, heads * row, row, 1});
  };
  return {make(dk), make(dv)};
}

TEST_P(AppendKv, PutsEveryTokenInItsPlaceOnly) {
  const int dtype = GetParam();
  Context context(3);
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    const int64_t n = static_cast<int64_t>(c.qo_len.size()), heads = 2, dk = 24, dv = 8;
    const int64_t tokens = std::accumulate(c.qo_len.begin(), c.qo_len.end(), int64_t{0});
    int64_t width = 1, total = 0;
    std::vector<int64_t> pages;
    for (int len : c.kv_len) {
      pages.push_back((len + c.page_size - 1) / c.page_size);
      width = std::max(width, pages.back());
      total += pages.back();
    }
    const int64_t pool = total + 2;
    std::vector<int64_t> ids(static_cast<size_t>(pool));
    std::iota(ids.begin(), ids.end(), 0);
    std::mt19937_64 random(3);
    std::shuffle(ids.begin(), ids.end(), random);
    Caches cache = make_caches(c, dtype, pool, heads, dk, dv), by_slot = make_caches(c, dtype, pool, heads, dk, dv);
    Tensor k(dtype, {tokens, heads, dk}, {heads * (dk + 1) + 1, dk + 1, 1}), v(dtype, {tokens, heads, dv});
    k.fill_normal(random);
    v.fill_normal(random);
    const int index = c.i64 ? FULMEN_I64 : FULMEN_I32;
    const auto put = [&](Tensor& t, int64_t i, int64_t x) {
      c.i64 ? t.set_integer<int64_t>(i, x) : t.set_integer<int32_t>(i, static_cast<int32_t>(x));
    };
    Tensor qo_indptr(index, {n + 1}), kv_len(index, {n}), last(index, {n}), indptr(index, {n + 1}), row_index(index, {n});
    Tensor table = c.csr ? Tensor(index, {total + 1}) : Tensor(index, {n + 1, width}, {width + 2, 1});
    Tensor slots(FULMEN_I64, {tokens});
    int64_t row = 0, page0 = 0, next = 0;
    for (int64_t r = 0; r < n; ++r) {
      const size_t i = static_cast<size_t>(r);
      put(qo_indptr, r, row);
      put(kv_len, r, c.kv_len[i]);
      put(indptr, r, page0);
      put(last, r, pages[i] ? c.kv_len[i] - (pages[i] - 1) * c.page_size : 0);
      const int64_t table_row = c.row_index ? n - r : r;
      put(row_index, r, table_row);
      std::vector<int64_t> mine;
      for (int64_t j = 0; j < pages[i]; ++j) {
        mine.push_back(ids[static_cast<size_t>(next++)]);
        put(table, c.csr ? page0 + j : table_row * width + j, mine.back());
      }
      for (int t = 0; t < c.qo_len[i]; ++t) {
        const int64_t position = c.kv_len[i] - c.qo_len[i] + t;
        slots.set_integer<int64_t>(row + t, mine[static_cast<size_t>(position / c.page_size)] * c.page_size + position % c.page_size);
      }
      row += c.qo_len[i];
      page0 += pages[i];
    }
    put(qo_indptr, n, row);
    put(indptr, n, page0);

    FULMEN_INIT(fulmen_append_kv_args, args);
    args.k = k.view(), args.v = v.view(), args.k_cache = cache.k.view(), args.v_cache = cache.v.view();
    args.qo_indptr = qo_indptr.view();
    args.table.struct_size = sizeof args.table;
    args.table.table = table.view();
    if (c.csr) args.table.indptr = indptr.view();
    if (c.row_index) args.table.row_index = row_index.view();
    if (c.pages_and_last) {
      args.last_page_len = last.view();
    } else {
      args.kv_len = kv_len.view();
    }
    EXPECT_FULMEN_OK(fulmen_append_kv(context, &args, nullptr));

    // The expected cache, element by element.
    std::vector<bool> written(static_cast<size_t>(pool * c.page_size), false);
    const auto expect_row = [&](Tensor& from, Tensor& to, int64_t t, int64_t slot, int64_t dim) {
      for (int64_t i = 0; i < heads * dim; ++i) {
        ASSERT_EQ(std::memcmp(from.at(t * heads * dim + i), to.at(slot * heads * dim + i), static_cast<size_t>(size_of(dtype))), 0)
            << "token " << t << " element " << i;
      }
    };
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t slot = slots.integer<int64_t>(t);
      written[static_cast<size_t>(slot)] = true;
      expect_row(k, cache.k, t, slot, dk);
      expect_row(v, cache.v, t, slot, dv);
    }
    for (int64_t slot = 0; slot < pool * c.page_size; ++slot) {
      if (written[static_cast<size_t>(slot)]) continue;
      for (int64_t i = 0; i < heads * dk; ++i) ASSERT_TRUE(std::isnan(cache.k.get(slot * heads * dk + i))) << "slot " << slot;
      for (int64_t i = 0; i < heads * dv; ++i) ASSERT_TRUE(std::isnan(cache.v.get(slot * heads * dv + i))) << "slot " << slot;
    }
    cache.k.expect_guards("k_cache");
    cache.v.expect_guards("v_cache");

    FULMEN_INIT(fulmen_append_kv_args, slotted);
    slotted.k = k.view(), slotted.v = v.view(), slotted.k_cache = by_slot.k.view(), slotted.v_cache = by_slot.v.view();
    slotted.slot_mapping = slots.view();
    EXPECT_FULMEN_OK(fulmen_append_kv(context, &slotted, nullptr));
    EXPECT_EQ(cache.k.bytes(), by_slot.k.bytes());
    EXPECT_EQ(cache.v.bytes(), by_slot.v.bytes());
  }
}

TEST(AppendKvFaults, BadSlotsAndPagesAreSkipped) {
  Context context(1);
  Tensor k(FULMEN_F32, {4, 1, 8}), v(FULMEN_F32, {4, 1, 8}), kc(FULMEN_F32, {2, 4, 1, 8}), vc(FULMEN_F32, {2, 4, 1, 8});
  std::mt19937_64 random(1);
  k.fill_normal(random);
  v.fill_normal(random);
  Tensor slots(FULMEN_I64, {4});
  const int64_t list[] = {-1, 8, 3, int64_t{1} << 60};
  for (int i = 0; i < 4; ++i) slots.set_integer<int64_t>(i, list[i]);
  FULMEN_INIT(fulmen_append_kv_args, args);
  args.k = k.view(), args.v = v.view(), args.k_cache = kc.view(), args.v_cache = vc.view(), args.slot_mapping = slots.view();
  EXPECT_FULMEN_OK(fulmen_append_kv(context, &args, nullptr));
  for (int64_t i = 0; i < kc.size(); ++i) EXPECT_EQ(std::isnan(kc.get(i)), i / 8 != 3) << i;
  kc.expect_guards("k_cache");
}

TEST(AppendKvErrors, NameTheArgument) {
  Context context(1);
  Tensor k(FULMEN_F32, {4, 1, 8}), v(FULMEN_BF16, {4, 1, 8}), kc(FULMEN_F32, {2, 4, 1, 8}), vc(FULMEN_F32, {2, 4, 1, 8});
  FULMEN_INIT(fulmen_append_kv_args, args);
  args.k = k.view(), args.v = v.view(), args.k_cache = kc.view(), args.v_cache = vc.view();
  EXPECT_EQ(fulmen_append_kv(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
  EXPECT_NE(std::string(fulmen_last_error()).find("v: expected k's dtype f32, found bf16"), std::string::npos) << fulmen_last_error();
}

INSTANTIATE_TEST_SUITE_P(Dtypes, AppendKv, testing::Values(FULMEN_F32, FULMEN_F16, FULMEN_BF16),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
