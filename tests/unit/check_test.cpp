#include "core/check.hpp"

#include <gtest/gtest.h>

#include "core/args.hpp"

namespace fulmen {
namespace {

fulmen_tensor tensor(void* data, int32_t dtype, std::initializer_list<int64_t> shape) {
  fulmen_tensor t{};
  t.data = data;
  t.dtype = dtype;
  for (int64_t extent : shape) t.shape[t.ndim++] = extent;
  int64_t stride = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    t.stride[i] = stride;
    stride *= t.shape[i];
  }
  return t;
}

template <class Body>
std::string text_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.text();
  }
  return "no error";
}

float data[64];

TEST(Check, NamesArgumentExpectedAndFound) {
  Sym tokens{"num_tokens"};
  const auto k = tensor(data, FULMEN_F32, {4, 8}), v = tensor(data, FULMEN_F32, {3, 8});
  Check("append_kv", "k", k).present().dims({tokens, 8});
  EXPECT_EQ(text_of([&] { Check("append_kv", "v", v).dims({tokens, 8}); }),
            "append_kv: v: expected [num_tokens = 4, 8], found [3, 8]");
  EXPECT_EQ(text_of([&] { Check("append_kv", "k", k).dtype({FULMEN_F16, FULMEN_BF16}); }),
            "append_kv: k: expected f16 | bf16, found f32");
}

TEST(Check, AbsentAndStrided) {
  const auto none = tensor(nullptr, FULMEN_F32, {2});
  EXPECT_EQ(text_of([&] { Check("rope", "q", none).present(); }), "rope: q: expected data, found NULL");
  const auto empty = tensor(nullptr, FULMEN_F32, {0, 8});
  EXPECT_EQ(text_of([&] { Check("rope", "q", empty).present(); }), "no error");
  auto strided = tensor(data, FULMEN_F32, {2, 4});
  strided.stride[1] = 2;
  EXPECT_EQ(text_of([&] { Check("rope", "q", strided).rows(); }),
            "rope: q: expected stride 1 in the last dimension, found 2");
}

TEST(Args, OlderAndNewerCallers) {
  fulmen_act_and_mul_args args{};
  args.struct_size = offsetof(fulmen_act_and_mul_args, activation);  // a caller that knows no activation
  args.activation = 77;
  EXPECT_EQ(read_args("act_and_mul", "args", &args).activation, 0);

  struct Newer {
    fulmen_act_and_mul_args args;
    int64_t added;
  } newer{};
  newer.args.struct_size = sizeof newer;
  EXPECT_EQ(text_of([&] { read_args("act_and_mul", "args", &newer.args); }), "no error");
  newer.added = 1;
  EXPECT_NE(text_of([&] { read_args("act_and_mul", "args", &newer.args); }), "no error");
  args.struct_size = 0;
  EXPECT_NE(text_of([&] { read_args("act_and_mul", "args", &args); }), "no error");
}

}  // namespace
}  // namespace fulmen
