// rope_append on the CPU: the bits of rope and append_kv in a row.
#include <fmt/format.h>

#include "ops/tensors.hpp"

namespace {
using namespace testing_ops;

struct Case {
  const char* name;
  int64_t tokens, q_heads, k_heads, head_dim, value_dim;
  int rotary, interleaved;
  bool table, in_place, hnd;
};

constexpr Case kCases[] = {
    {"empty batch", 0, 2, 1, 64, 64, 0, 0, false, false, false}, {"one token", 1, 9, 3, 64, 64, 0, 0, true, true, false},
    {"neighbours", 13, 4, 2, 128, 64, 0, 1, false, false, false}, {"partial", 9, 3, 1, 80, 8, 24, 0, false, false, true},
    {"odd sizes", 21, 5, 5, 22, 7, 10, 1, true, true, true},
};

TEST(RopeAppend, GivesTheBitsOfRopeAndAppend) {
  std::mt19937_64 random(3);
  Context context;
  constexpr int64_t kPages = 9, kPage = 4;
  for (int dtype : {FULMEN_F32, FULMEN_F16, FULMEN_BF16}) {
    for (const Case& c : kCases) {
      const std::string what = fmt::format("{} {}", name_of(dtype), c.name);
      Tensor q(dtype, {c.tokens, c.q_heads, c.head_dim}), k(dtype, {c.tokens, c.k_heads, c.head_dim});
      Tensor v(dtype, {c.tokens, c.k_heads, c.value_dim}, {c.k_heads * c.value_dim + 3, c.value_dim, 1});
      q.fill_normal(random), k.fill_normal(random), v.fill_normal(random);
      Tensor k_before = k, q_out(dtype, {c.tokens, c.q_heads, c.head_dim}), k_out(dtype, {c.tokens, c.k_heads, c.head_dim});
      Tensor positions(FULMEN_I32, {c.tokens}), slots(FULMEN_I64, {c.tokens});
      const int rotary = c.rotary ? c.rotary : static_cast<int>(c.head_dim);
      Tensor table(FULMEN_F32, {64, rotary});
      table.fill_normal(random);
      for (int64_t t = 0; t < c.tokens; ++t) {
        positions.set_integer<int32_t>(t, t == 7 ? -1 : static_cast<int32_t>(3 * t));
        slots.set_integer<int64_t>(t, t == 5 ? -1 : t == 6 ? kPages * kPage : (t * 5) % (kPages * kPage));
      }
      const auto cache = [&](int64_t dim) {
        const int64_t h = c.k_heads;
        return c.hnd ? Tensor(dtype, {kPages, kPage, h, dim}, {h * kPage * dim, dim, kPage * dim, 1})
                     : Tensor(dtype, {kPages, kPage, h, dim}, {h * kPage * dim, h * dim, dim, 1});
      };
      Tensor k_cache = cache(c.head_dim), v_cache = cache(c.value_dim), k_want = k_cache, v_want = v_cache;

      FULMEN_INIT(fulmen_rope_args, rope);
      rope.q = q.view(), rope.k = k.view(), rope.q_out = q_out.view(), rope.k_out = k_out.view(), rope.positions = positions.view();
      if (c.table) rope.cos_sin_cache = table.view();
      rope.params.struct_size = sizeof rope.params;
      rope.params.rotary_dim = c.rotary, rope.params.interleaved = c.interleaved;
      EXPECT_FULMEN_OK(fulmen_rope(context, &rope, nullptr));
      FULMEN_INIT(fulmen_append_kv_args, append);
      append.k = k_out.view(), append.v = v.view(), append.k_cache = k_want.view(), append.v_cache = v_want.view();
      append.slot_mapping = slots.view();
      EXPECT_FULMEN_OK(fulmen_append_kv(context, &append, nullptr));

      Tensor q_found(dtype, {c.tokens, c.q_heads, c.head_dim});
      FULMEN_INIT(fulmen_rope_append_args, args);
      args.q = q.view(), args.k = k.view(), args.v = v.view(), args.positions = positions.view();
      if (!c.in_place) args.q_out = q_found.view();
      args.cos_sin_cache = rope.cos_sin_cache, args.params = rope.params;
      args.k_cache = k_cache.view(), args.v_cache = v_cache.view(), args.slot_mapping = slots.view();
      EXPECT_FULMEN_OK(fulmen_rope_append(context, &args, nullptr));
      EXPECT_EQ((c.in_place ? q : q_found).bytes(), q_out.bytes()) << what;
      EXPECT_EQ(k_cache.bytes(), k_want.bytes()) << what;
      EXPECT_EQ(v_cache.bytes(), v_want.bytes()) << what;
      EXPECT_EQ(k.bytes(), k_before.bytes()) << what;
    }
  }
}

TEST(RopeAppend, ErrorsNameTheArgument) {
  Context context(1);
  Tensor q(FULMEN_BF16, {2, 2, 16}), k(FULMEN_BF16, {2, 1, 16}), v(FULMEN_F16, {2, 1, 16}), cache(FULMEN_BF16, {2, 4, 1, 16});
  Tensor other(FULMEN_BF16, {2, 4, 1, 16}), positions(FULMEN_I32, {2});
  FULMEN_INIT(fulmen_rope_append_args, args);
  args.q = q.view(), args.k = k.view(), args.v = v.view(), args.k_cache = cache.view(), args.v_cache = other.view();
  args.positions = positions.view();
  EXPECT_EQ(fulmen_rope_append(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
  EXPECT_NE(std::string(fulmen_last_error()).find("rope_append: v: expected k's dtype bf16, found f16"), std::string::npos) << fulmen_last_error();
  args.v = k.view();
  EXPECT_EQ(fulmen_rope_append(context, &args, nullptr), FULMEN_INVALID_ARGUMENT);
  EXPECT_NE(std::string(fulmen_last_error()).find("slot_mapping"), std::string::npos) << fulmen_last_error();
}

}  // namespace
