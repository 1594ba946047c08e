// The host side of the CUDA back end over a driver that runs nothing: lengths in host memory, captures, seals, errors.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "cuda/fake_driver.hpp"
#include "fulmen/fulmen.hpp"
#include "jit/support.hpp"
#include "kernels/attention/plan.config.hpp"

namespace fulmen {
namespace {

using Ints = std::vector<int32_t>;

FakeDriver& fake() {
  static FakeDriver* driver = [] {
    setenv("FULMEN_CUDA_DRIVER", FULMEN_FAKE_CUDA, 1);
    void* library = dlopen(FULMEN_FAKE_CUDA, RTLD_NOW);
    return static_cast<FakeDriver*>(library ? dlsym(library, "fulmen_fake_driver") : nullptr);
  }();
  if (driver == nullptr) throw std::runtime_error("no fake driver");
  return *driver;
}

class CudaState : public testing::Test {
 protected:
  void SetUp() override {
    fake() = FakeDriver{};
    ASSERT_TRUE(std::filesystem::exists(jit_test::pinned_nvrtc(13))) << "run `make test` once: it fetches the compiler";
  }
  fulmen_context_options options(const std::string& cache) {
    cache_ = cache;
    nvrtc_ = jit_test::pinned_nvrtc(13);
    auto o = make<fulmen_context_options>();
    o.device_type = FULMEN_CUDA;
    o.cache_dir = cache_.c_str();
    o.nvrtc_path = nvrtc_.c_str();
    return o;
  }
  // Kernels are compiled once for all tests of the program.
  static std::string shared_cache() {
    static jit_test::TempDir folder;
    return folder / "cache";
  }
  static Attention attention(const Context& context, int64_t requests = 4) {
    auto spec = make<fulmen_attention_spec>();
    spec.q_dtype = spec.kv_dtype = spec.o_dtype = FULMEN_BF16;
    spec.head_dim_qk = spec.head_dim_vo = 64;
    auto limits = make<fulmen_attention_limits>();
    limits.max_requests = requests, limits.max_rows = 8, limits.max_qo_len = 3, limits.max_kv_len = 100, limits.num_groups = 1;
    limits.groups[0] = {sizeof(fulmen_attention_group), 8, 2, 1, -1};
    return Attention(context, spec, limits);
  }
  static fulmen_attention_lengths lengths(const Ints& qo, const std::vector<int64_t>& kv, int32_t device) {
    auto l = make<fulmen_attention_lengths>();
    l.levels[0] = make<fulmen_attention_level>();
    l.levels[0].qo_indptr = tensor(qo.data(), {static_cast<int64_t>(qo.size())});
    l.levels[0].kv_len = tensor(kv.data(), {static_cast<int64_t>(kv.size())});
    l.levels[0].qo_indptr.device = l.levels[0].kv_len.device = device;
    return l;
  }
  static std::string refusal(const Attention& a, const fulmen_attention_lengths& l) {
    alignas(16) char memory[8192];
    const int before = fake().launches;
    const fulmen_status status = fulmen_attention_plan(a.get(), &l, memory, stream());
    EXPECT_NE(status, FULMEN_OK);
    const std::string text = fulmen_last_error();
    EXPECT_EQ(fake().launches, before) << "launched all the same";
    return text;
  }
  static fulmen_stream stream() { return reinterpret_cast<void*>(uintptr_t{0x7000}); }

  std::string cache_, nvrtc_;
};

// Copies and launches as the device would see them when it gets to them, long after the caller has gone on.
struct LateDevice {
  struct Copy {
    char* to;
    const char* from;
    uint64_t bytes;
  };
  std::vector<Copy> copies;
  std::vector<PlanParams> plans;

  LateDevice() {
    fake().user = this;
    fake().on_launch = [](const void* params, void* user) {
      static_cast<LateDevice*>(user)->plans.push_back(*static_cast<const PlanParams*>(params));
    };
    fake().on_copy_up = [](void* to, const void* from, uint64_t bytes, void* user) {
      static_cast<LateDevice*>(user)->copies.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes});
    };
  }
  // Where a launch's array came from: the bytes under its address of the copy just ahead of it.
  const void* source(size_t call, const void* address) const {
    const Copy& copy = copies[call];
    const auto at = static_cast<const char*>(address) - copy.to;
    return at >= 0 && static_cast<uint64_t>(at) < copy.bytes ? copy.from + at : nullptr;
  }
};

TEST_F(CudaState, HostLengthsMayBeOverwrittenAtOnceAndNothingWaits) {
  const Context context(options(shared_cache()));
  const Attention a = attention(context);
  LateDevice device;
  fake().events_pend = true;
  alignas(16) static char memory[8192];
  constexpr int kCalls = 200;
  for (int i = 0; i < kCalls; ++i) {
    Ints qo{0, 1, 3};
    std::vector<int64_t> kv{i % 100, 7};
    a.plan(lengths(qo, kv, FULMEN_CPU), memory, stream());
    qo.assign(3, -1), kv.assign(2, -1);
  }
  ASSERT_EQ(device.plans.size(), size_t{kCalls});
  for (size_t i = 0; i < kCalls; ++i) {
    const LevelLengths& l = device.plans[i].lengths.levels[0];
    ASSERT_TRUE(device.source(i, l.qo_indptr) && device.source(i, l.kv_len));
    EXPECT_EQ(std::memcmp(device.source(i, l.qo_indptr), Ints{0, 1, 3}.data(), 12), 0);
    EXPECT_EQ(static_cast<const int64_t*>(device.source(i, l.kv_len))[0], static_cast<int64_t>(i % 100));
    EXPECT_EQ(l.num_segments, 2);
    EXPECT_TRUE(l.kv_len_i64 && !l.qo_indptr_i64);
  }
  EXPECT_EQ(fake().waits, 0);
  EXPECT_EQ(fake().device_allocations, 0);
  EXPECT_EQ(fake().unsafe_calls, 0) << "another thread's capture would have ended";
}

TEST_F(CudaState, TheRingIsUsedAgainAndIsBounded) {
  const Context context(options(shared_cache()));
  const Attention a = attention(context);
  const int made = fake().host_allocations;
  EXPECT_GT(made, 0) << "slots are made with the handle";
  alignas(16) static char memory[8192];
  const Ints qo{0, 1};
  const std::vector<int64_t> kv{9};
  for (int i = 0; i < 1000; ++i) a.plan(lengths(qo, kv, FULMEN_CPU), memory, stream());
  EXPECT_EQ(fake().host_allocations, made);
  fake().events_pend = true;
  for (int i = 0; i < 1000; ++i) a.plan(lengths(qo, kv, FULMEN_CPU), memory, stream());
  EXPECT_EQ(fake().host_allocations, 256);
  EXPECT_EQ(fake().waits, 1000 - (256 - made));  // for the oldest, once all are under way
}

TEST_F(CudaState, MixedPlacesAndRefusalsByName) {
  const Context context(options(shared_cache()));
  const Attention a = attention(context);
  LateDevice device;
  alignas(16) static char memory[8192];
  const Ints qo{0, 1, 1};
  const std::vector<int64_t> kv{9, 0};
  fulmen_attention_lengths mixed = lengths(qo, kv, FULMEN_CPU);
  mixed.levels[0].kv_len.device = FULMEN_CUDA;
  a.plan(mixed, memory, stream());
  const LevelLengths& planned = device.plans[0].lengths.levels[0];
  EXPECT_EQ(planned.kv_len, kv.data());
  EXPECT_NE(device.source(0, planned.qo_indptr), nullptr);
  // What goes up lies inside the plan memory, behind the plan.
  EXPECT_GE(device.copies[0].to, memory);
  EXPECT_LE(device.copies[0].to + device.copies[0].bytes, memory + a.sizes().plan_bytes);

  const auto names = [&](const fulmen_attention_lengths& l, const char* text) {
    const std::string found = refusal(a, l);
    EXPECT_NE(found.find(text), std::string::npos) << found;
  };
  names(lengths({0, 1, 0}, kv, FULMEN_CPU), "levels[0].qo_indptr[2]: expected 1 to 8");
  names(lengths({0, 1, 9}, kv, FULMEN_CPU), "levels[0].qo_indptr[2]");
  names(lengths({-1, 1, 2}, kv, FULMEN_CPU), "levels[0].qo_indptr[0]");
  names(lengths({0, 4, 4}, kv, FULMEN_CPU), "expected at most 3 rows of a request");
  names(lengths(qo, {9, 101}, FULMEN_CPU), "levels[0].kv_len[1]: expected 0 to 100, found 101");
  names(lengths(qo, {-1, 0}, FULMEN_CPU), "levels[0].kv_len[0]");
  fake().capturing = true;
  names(lengths(qo, kv, FULMEN_CPU), "levels[0].qo_indptr: expected a tensor on the CUDA device while the stream is capturing");
  names(mixed, "levels[0].qo_indptr");
  a.plan(lengths(qo, kv, FULMEN_CUDA), memory, stream());
  fake().capturing = false;

  auto pages = lengths(qo, kv, FULMEN_CPU);
  const Ints indptr{0, 1, 1}, last{17, 1};
  pages.page_size = 16;
  pages.levels[0].kv_len = fulmen_tensor{};
  pages.levels[0].kv_page_indptr = tensor(indptr.data(), {3});
  pages.levels[0].last_page_len = tensor(last.data(), {2});
  pages.levels[0].kv_page_indptr.device = pages.levels[0].last_page_len.device = FULMEN_CPU;
  names(pages, "levels[0].last_page_len[0]: expected 0 to 16, found 17");
}

TEST_F(CudaState, PlansOfManyThreadsDoNotShareASlot) {
  const Context context(options(shared_cache()));
  const Attention a = attention(context);
  fake().events_pend = true;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&a] {
      alignas(16) char memory[8192];
      const Ints qo{0, 1};
      const std::vector<int64_t> kv{9};
      for (int i = 0; i < 200; ++i) a.plan(lengths(qo, kv, FULMEN_CPU), memory, stream());
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_LE(fake().host_allocations, 256 + 4);
}

fulmen_status norm(const Context& context, char* x) {
  auto args = make<fulmen_rms_norm_args>();
  args.x = args.out = tensor(x, FULMEN_BF16, {2, 64});
  args.weight = tensor(x + 256, FULMEN_BF16, {64});
  args.eps = 1e-5f;
  return fulmen_rms_norm(context.get(), &args, reinterpret_cast<void*>(uintptr_t{0x7000}));
}

TEST_F(CudaState, ACaptureTakesPreparedKernelsOnly) {
  alignas(256) static char x[1024];
  const Context context(options(shared_cache()));
  fake().capturing = true;
  EXPECT_EQ(norm(context, x), FULMEN_NOT_PREPARED);
  EXPECT_NE(std::string(fulmen_last_error()).find("rms_norm"), std::string::npos) << fulmen_last_error();
  fake().capturing = false;
  auto spec = make<fulmen_op_spec>();
  spec.op = FULMEN_OP_RMS_NORM;
  spec.dtype = FULMEN_BF16;
  ASSERT_EQ(fulmen_prepare(context.get(), &spec, 1, nullptr, nullptr), FULMEN_OK) << fulmen_last_error();
  const int loads = fake().loads;
  fake().capturing = true;
  EXPECT_EQ(norm(context, x), FULMEN_OK) << fulmen_last_error();
  EXPECT_EQ(fake().loads, loads) << "a first launch inside a capture loaded code";
  fake().capturing = false;
  const auto stats = nlohmann::json::parse(context.stats());
  EXPECT_EQ(stats["launches"], 1);
  EXPECT_EQ(stats["bytes_from_device"], 0);
}

TEST_F(CudaState, SealAndErrors) {
  alignas(256) static char x[1024];
  jit_test::TempDir empty;
  const Context context(options(empty / "cache"));
  EXPECT_EQ(fulmen_seal(context.get()), FULMEN_OK);
  EXPECT_EQ(norm(context, x), FULMEN_NOT_PREPARED);
  EXPECT_EQ(nlohmann::json::parse(context.stats())["compiles"], 0);

  const Context other(options(shared_cache()));
  ASSERT_EQ(norm(other, x), FULMEN_OK) << fulmen_last_error();
  fake().launch_result = 1;
  EXPECT_EQ(norm(other, x), FULMEN_CUDA_ERROR);
  EXPECT_NE(std::string(fulmen_last_error()).find("rms_norm"), std::string::npos) << fulmen_last_error();
  fake().launch_result = 700;
  EXPECT_EQ(norm(other, x), FULMEN_CUDA_STICKY);
}

}  // namespace
}  // namespace fulmen
