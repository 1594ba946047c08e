// Replays what real GPUs gave for mma.sync (tests/gpu/mma_vectors.py records it into tests/kernels/data) and compares bit for bit.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "emulator/matrix.hpp"
#include "tests/gpu/mma_vectors.hpp"

namespace fulmen {
namespace {

void compute(const emulator::MatrixModel& model, DType type, uint64_t seed, uint64_t number, float* d) {
  uint16_t a[16 * 16], b[8 * 16];
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) a[m * 16 + k] = vectors::a_value(type, seed, number, m, k);
    for (int n = 0; n < 8; ++n) d[m * 8 + n] = vectors::c_value(seed, number, m, n);
  }
  for (int n = 0; n < 8; ++n) {
    for (int k = 0; k < 16; ++k) b[n * 16 + k] = vectors::b_value(type, seed, number, k, n);
  }
  emulator::multiply_add(model, type, 16, 8, 16, a, b, d);
}

void replay(const std::filesystem::path& path) {
  SCOPED_TRACE(path.filename().string());
  std::ifstream file(path);
  std::string line, gpu;
  uint64_t seed = 0, instructions = 0;
  const emulator::MatrixModel* model = nullptr;
  int checked = 0;
  while (std::getline(file, line)) {
    std::istringstream in(line);
    std::string key, kind;
    in >> key;
    if (key == "seed") in >> seed;
    if (key == "instructions") in >> instructions;
    if (key == "capability") {
      double capability = 0;
      in >> capability;
      model = &emulator::kMatrixModels[capability >= 9 ? 1 : 0];
    }
    if (key != "digests" && key != "result") continue;
    ASSERT_NE(model, nullptr);
    in >> kind;
    const DType type = kind == "bf16" ? DType::bf16 : DType::f16;
    if (key == "result") {
      uint64_t number = 0;
      in >> std::dec >> number >> std::hex;
      float d[128];
      compute(*model, type, seed, number, d);
      for (int i = 0; i < 128; ++i) {
        uint32_t expected = 0;
        in >> expected;
        ASSERT_EQ(float_bits(d[i]), expected) << kind << " instruction " << number << " (kind " << number % vectors::kKinds << "), row "
                                              << i / 8 << ", column " << i % 8;
      }
      ++checked;
      continue;
    }
    for (uint64_t chunk = 0; chunk * vectors::kPerChunk < instructions; ++chunk) {
      uint64_t expected = 0, sum = 0;
      in >> std::hex >> expected;
      for (uint64_t i = chunk * vectors::kPerChunk; i < std::min<uint64_t>(instructions, (chunk + 1) * vectors::kPerChunk); ++i) {
        float d[128];
        compute(*model, type, seed, i, d);
        for (int j = 0; j < 128; ++j) sum += vectors::digest_term(i, j / 8, j % 8, d[j]);
      }
      EXPECT_EQ(sum, expected) << kind << " chunk " << chunk;
      ++checked;
    }
  }
  EXPECT_GT(checked, 0) << "nothing in the file";
}

TEST(MmaVectors, SameBitsAsTheGpu) {
  const std::filesystem::path folder = FULMEN_SOURCE_DIR "/tests/kernels/data";
  int files = 0;
  if (std::filesystem::exists(folder)) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().filename().string().rfind("mma_", 0) != 0) continue;
      replay(entry.path());
      ++files;
    }
  }
  if (files == 0) GTEST_SKIP() << "no vectors recorded yet: run tests/gpu/mma_vectors.py on a GPU";
}

// The generator reaches what it is for: every kind differs between the models, or shows specials.
TEST(MmaVectors, TellTheModelsApart) {
  int differ = 0, not_finite = 0;
  for (uint64_t number = 0; number < 256; ++number) {
    float ampere[128], hopper[128];
    compute(emulator::kMatrixModels[0], DType::f16, 1, number, ampere);
    compute(emulator::kMatrixModels[1], DType::f16, 1, number, hopper);
    for (int i = 0; i < 128; ++i) {
      differ += float_bits(ampere[i]) != float_bits(hopper[i]);
      not_finite += (float_bits(hopper[i]) & 0x7f800000u) == 0x7f800000u;
    }
  }
  EXPECT_GT(differ, 1000);
  EXPECT_GT(not_finite, 100);
}

}  // namespace
}  // namespace fulmen
