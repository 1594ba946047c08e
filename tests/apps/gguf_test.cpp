#include "engine/gguf.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "apps/gguf_builder.hpp"
#include "apps/model_file.hpp"
#include "engine/input_error.hpp"

namespace fulmen::engine {
namespace {

using test::GgufBuilder;

GgufFile read(const GgufBuilder& builder) { return GgufFile::from_memory(builder.bytes(), "test.gguf"); }

template <class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const InputError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos)
        << "more than one line: " << error.what();
    return error.what();
  }
  return "no error";
}

void expect_error(const GgufBuilder& builder, std::string_view part) {
  const std::string error = error_of([&] { read(builder); });
  EXPECT_NE(error.find(part), std::string::npos)
      << "expected an error with: " << part << "\nfound: " << error;
}

std::string floats(int count) {
  std::string out;
  for (int i = 0; i < count; ++i) GgufBuilder::put<float>(out, static_cast<float>(i));
  return out;
}

GgufBuilder small() {
  GgufBuilder builder;
  builder.text("general.architecture", "llama")
      .number<uint32_t>("llama.block_count", GgufBuilder::u32, 2)
      .number<float>("llama.epsilon", GgufBuilder::f32, 0.5f)
      .number<int8_t>("negative", GgufBuilder::i8, -3)
      .number<uint8_t>("flag", GgufBuilder::boolean, 1)
      .texts("words", {"a", "", "ccc"})
      .numbers<int32_t>("types", GgufBuilder::i32, {1, -2, 3})
      .numbers<float>("factors", GgufBuilder::f32, {0.25f, 2.0f})
      .tensor("a", 0, {4, 3}, floats(12))
      .tensor("b", 1, {5}, std::string(10, '\x11'));
  return builder;
}

TEST(Gguf, ReadsMetadata) {
  const GgufFile file = read(small());
  EXPECT_EQ(file.version(), 3u);
  EXPECT_EQ(file.num_metadata(), 8u);
  EXPECT_EQ(file.string("general.architecture"), "llama");
  EXPECT_EQ(file.unsigned_integer("llama.block_count"), 2u);
  EXPECT_EQ(file.number("llama.epsilon"), 0.5);
  EXPECT_EQ(file.number("negative"), -3);
  EXPECT_TRUE(file.boolean("flag"));
  EXPECT_EQ(file.strings("words"), (std::vector<std::string_view>{"a", "", "ccc"}));
  EXPECT_EQ(file.integers("types"), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(file.numbers("factors"), (std::vector<double>{0.25, 2.0}));
  EXPECT_EQ(file.unsigned_integer_or("none", 7), 7u);
  EXPECT_EQ(file.unsigned_integer_or("llama.block_count", 7), 2u);
  EXPECT_FALSE(file.has("none"));
}

TEST(Gguf, ReadsTensors) {
  const GgufFile file = read(small());
  ASSERT_EQ(file.tensors().size(), 2u);
  const GgufTensor a = file.tensor("a");
  EXPECT_EQ(a.dtype, GgufDtype::f32);
  EXPECT_EQ(a.rank, 2);
  EXPECT_EQ(a.row_elements(), 4);
  EXPECT_EQ(a.num_rows(), 3);
  ASSERT_EQ(a.data.size(), 48u);
  EXPECT_EQ(std::memcmp(a.data.data(), floats(12).data(), 48), 0);
  EXPECT_EQ(file.tensor("b").data.size(), 10u);
  EXPECT_EQ(error_of([&] { file.tensor("c"); }), "test.gguf: tensor 'c' is missing");
}

TEST(Gguf, ErrorsNameTheKey) {
  const GgufFile file = read(small());
  EXPECT_EQ(error_of([&] { file.string("none"); }), "test.gguf: metadata key 'none' is missing");
  EXPECT_NE(error_of([&] { file.string("flag"); }).find("key 'flag': expected a string, found bool"),
            std::string::npos);
  EXPECT_NE(
      error_of([&] { file.unsigned_integer("negative"); }).find("expected an unsigned integer, found -3"),
      std::string::npos);
  EXPECT_NE(error_of([&] { file.unsigned_integer("llama.epsilon"); }).find("found f32"), std::string::npos);
  EXPECT_NE(error_of([&] { file.strings("types"); }).find("found array of i32"), std::string::npos);
  EXPECT_NE(error_of([&] { file.integers("words"); }).find("found array of string"), std::string::npos);
  EXPECT_NE(error_of([&] { file.integers("factors"); }).find("found array of f32"), std::string::npos);
  EXPECT_NE(error_of([&] { file.numbers("flag"); }).find("found bool"), std::string::npos);
}

TEST(Gguf, RefusesForeignFiles) {
  const auto refuse = [](std::string_view text) {
    return error_of([&] { GgufFile::from_memory(GgufBuilder::to_bytes(text), "x"); });
  };
  EXPECT_EQ(refuse(""), "x: not a GGUF file: expected it to begin with 'GGUF', found ''");
  EXPECT_EQ(refuse("GGU"), "x: not a GGUF file: expected it to begin with 'GGUF', found 'GGU'");
  EXPECT_EQ(refuse("\x7f"
                   "ELF...."),
            "x: not a GGUF file: expected it to begin with 'GGUF', found '\\x7fELF'");
  GgufBuilder builder;
  builder.version = 1;
  expect_error(builder, "expected version 2 or 3, found 1 (at byte 4)");
  builder.version = 0x03000000;
  expect_error(builder, "big-endian");
}

TEST(Gguf, RefusesEveryTruncation) {
  const std::string whole = small().text();
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_NE(error_of([&] { GgufFile::from_memory(GgufBuilder::to_bytes(whole.substr(0, length)), "x"); }),
              "no error")
        << length << " of " << whole.size() << " bytes";
  }
}

TEST(Gguf, RefusesCountsThatTheFileCannotHold) {
  GgufBuilder builder = small();
  builder.extra_tensors = int64_t{1} << 40;
  expect_error(builder, "expected at most 65536 tensors");
  builder = small();
  builder.extra_metadata = -9;  // wraps around
  expect_error(builder, "expected at most 65536 metadata keys");
  std::string array;
  GgufBuilder::put<uint32_t>(array, GgufBuilder::u64);
  GgufBuilder::put<uint64_t>(array, uint64_t{1} << 61);  // times 8 bytes is 0 in 64 bits
  expect_error(GgufBuilder().raw("k", GgufBuilder::array, array),
               "'k': expected 2305843009213693952 x 8 bytes");
  array.clear();
  GgufBuilder::put<uint32_t>(array, GgufBuilder::string);
  GgufBuilder::put<uint64_t>(array, ~uint64_t{0});
  expect_error(GgufBuilder().raw("k", GgufBuilder::array, array), "elements don't fit");
  std::string length;
  GgufBuilder::put<uint64_t>(length, ~uint64_t{0});
  expect_error(GgufBuilder().raw("k", GgufBuilder::string, length),
               "'k': expected 18446744073709551615 bytes");
  expect_error(GgufBuilder().raw("k", 13, "...."), "expected a value type below 13, found 13");
}

TEST(Gguf, LimitsNesting) {
  const auto nested = [](int depth) {
    std::string payload;
    for (int i = 1; i < depth; ++i) {
      GgufBuilder::put<uint32_t>(payload, GgufBuilder::array);
      GgufBuilder::put<uint64_t>(payload, 1);
    }
    GgufBuilder::put<uint32_t>(payload, GgufBuilder::u8);
    GgufBuilder::put<uint64_t>(payload, 0);
    return GgufBuilder().raw("k", GgufBuilder::array, payload);
  };
  EXPECT_EQ(read(nested(4)).num_metadata(), 1u);
  expect_error(nested(5), "arrays nest deeper than 4");
  expect_error(nested(100000), "arrays nest deeper than 4");
}

TEST(Gguf, RefusesDuplicates) {
  expect_error(small().text("words", "again"), "metadata key 'words' stands twice");
  expect_error(small().tensor("a", 0, {1}, floats(1)), "tensor 'a' stands twice");
}

TEST(Gguf, RefusesWrongTensors) {
  expect_error(GgufBuilder().tensor("t", 0, {}, ""), "expected 1 to 4 dimensions, found 0");
  expect_error(GgufBuilder().tensor("t", 0, {1, 1, 1, 1, 1}, floats(1)),
               "expected 1 to 4 dimensions, found 5");
  expect_error(GgufBuilder().tensor("t", 0, {4, 0}, ""), "dimension 1 is 0");
  expect_error(GgufBuilder().tensor("t", 0, {1u << 31, 1u << 31, 1u << 31}, floats(4)),
               "dimension 0 is 2147483648");
  expect_error(GgufBuilder().tensor("t", 0, {2, uint64_t{1} << 63}, floats(4)),
               "dimension 1 is 9223372036854775808");
  expect_error(GgufBuilder().tensor("t", 12, {256}, std::string(144, 'x')), "found Q4_K");
  expect_error(GgufBuilder().tensor("t", 999, {4}, floats(4)), "found number 999");
  expect_error(GgufBuilder().tensor("t", 2, {33}, std::string(36, 'x')),
               "multiple of 32 elements for Q4_0, found 33");
  expect_error(GgufBuilder().tensor(std::string(256, 'n'), 0, {1}, floats(1)), "at most 255 bytes");
  expect_error(GgufBuilder().tensor_at("t", 0, {4}, 0).data(floats(3)),
               "expected 16 bytes at offset 0, the data has 12");
  expect_error(GgufBuilder().tensor_at("t", 0, {4}, ~uint64_t{31}).data(floats(4)), "the data has 16");
  expect_error(GgufBuilder().tensor_at("t", 0, {4}, 4).data(floats(8)), "multiple of 32, found 4");
  expect_error(GgufBuilder().tensor_at("t", 0, {9}, 0).tensor_at("u", 0, {1}, 32).data(floats(9)),
               "tensors 't' and 'u' overlap");
  expect_error(GgufBuilder().tensor_at("t", 0, {1}, 0).tensor_at("u", 0, {1}, 0).data(floats(1)), "overlap");
}

TEST(Gguf, HonoursAlignment) {
  const auto with = [](uint32_t alignment) {
    GgufBuilder builder;
    builder.alignment = alignment;
    builder.number<uint32_t>("general.alignment", GgufBuilder::u32, alignment);
    builder.tensor("a", 0, {1}, floats(1)).tensor("b", 0, {2}, floats(2));
    return builder;
  };
  for (const uint32_t alignment : {8u, 32u, 256u}) {
    const GgufFile file = read(with(alignment));
    EXPECT_EQ(file.tensor("b").data.data() - file.tensor("a").data.data(), alignment);
  }
  for (const uint32_t alignment : {1u, 4u, 24u, 1u << 21})
    expect_error(with(alignment), "expected a power of two from 8");
  GgufBuilder builder;
  builder.text("general.alignment", "32");
  expect_error(builder, "'general.alignment': expected an unsigned integer, found string");
}

TEST(Gguf, OpensFilesMappedAndRead) {
  const std::string path = testing::TempDir() + "fulmen_gguf_test.gguf";
  const std::string text = small().text();
  std::ofstream(path, std::ios::binary) << text;
  for (const bool mmap : {true, false}) {
    const GgufFile file = GgufFile::open(path, {.mmap = mmap});
    EXPECT_EQ(file.string("general.architecture"), "llama");
    EXPECT_EQ(std::memcmp(file.tensor("a").data.data(), floats(12).data(), 48), 0);
  }
  const GgufFile mapped = GgufFile::open(path);
  const GgufFile in_memory = GgufFile::open(path, {.mmap = false});
  std::filesystem::resize_file(path, 100);
  EXPECT_NE(error_of([&] { mapped.tensor("a"); }).find("changed while open"), std::string::npos);
  EXPECT_EQ(in_memory.tensor("a").data.size(), 48u);
  std::filesystem::remove(path);
  for (const bool mmap : {true, false}) {
    EXPECT_NE(error_of([&] { GgufFile::open(path, {.mmap = mmap}); }).find("can't open: No such file"),
              std::string::npos);
    EXPECT_NE(
        error_of([&] { GgufFile::open(testing::TempDir(), {.mmap = mmap}); }).find("expected a regular file"),
        std::string::npos);
    EXPECT_NE(error_of([&] { GgufFile::open("/dev/null", {.mmap = mmap}); }).find("expected a regular file"),
              std::string::npos);
  }
}

TEST(Gguf, OpensTheModel) {
  FULMEN_NEED_MODEL();
  const GgufFile file = GgufFile::open(test::model_path());
  EXPECT_EQ(file.string("general.architecture"), "llama");
  EXPECT_EQ(file.tensors().size(), 272u);
  const GgufTensor embedding = file.tensor("token_embd.weight");
  EXPECT_EQ(embedding.dtype, GgufDtype::q8_0);
  EXPECT_EQ(embedding.row_elements(), 576);
  EXPECT_EQ(embedding.num_rows(), 49152);
}

}  // namespace
}  // namespace fulmen::engine
