// SIMD by Highway: this file is compiled once per target and the best one is chosen at run time.
#include "engine/gemm.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/gemm.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <utility>

HWY_BEFORE_NAMESPACE();
namespace fulmen::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kPanel = PackedMatrix::kPanel;
using Floats = hn::CappedTag<float, 16>;
using Halves = hn::Rebind<hwy::float16_t, Floats>;
constexpr int kLanes = hn::MaxLanes(Floats());
constexpr int kVecs = kPanel / kLanes;  // vectors that hold a panel's outputs for one row

// Rows of x worked on at once, so that the sums stay in registers: 12 x 2 of 32 with AVX-512, 3 x 4 of 16 with AVX2.
constexpr int kMaxRows = kVecs <= 2 ? 12 : kVecs <= 4 ? 3 : 1;

// y[r][0 .. 32) for kRows rows; x is packed [k][kRows], panel [k][32].
template <int kRows>
HWY_NOINLINE void tile(const uint16_t* HWY_RESTRICT panel, const float* HWY_RESTRICT x, int64_t cols,
                       float* HWY_RESTRICT y, int64_t y_stride) {
  const Floats f;
  const Halves h;
  hn::Vec<Floats> sum[kRows * kVecs];
#pragma GCC unroll 32
  for (int i = 0; i < kRows * kVecs; ++i) sum[i] = hn::Zero(f);
  for (int64_t k = 0; k < cols; ++k) {
    // The hardware's prefetcher stops at a page of 4 KiB: two pages ahead keeps the stream going.
    hwy::Prefetch(panel + 128 * kPanel);
    hn::Vec<Floats> w[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v)
      w[v] = hn::PromoteTo(f, hn::Load(h, reinterpret_cast<const hwy::float16_t*>(panel) + v * kLanes));
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const auto xr = hn::Set(f, x[r]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sum[r * kVecs + v] = hn::MulAdd(xr, w[v], sum[r * kVecs + v]);
    }
    panel += kPanel;
    x += kRows;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) hn::StoreU(sum[r * kVecs + v], f, y + r * y_stride + v * kLanes);
}

using TileFunction = void (*)(const uint16_t*, const float*, int64_t, float*, int64_t);

template <int... kRows>
constexpr TileFunction tile_of(int rows, std::integer_sequence<int, kRows...>) {
  constexpr TileFunction table[] = {&tile<kRows + 1>...};
  return table[rows - 1];
}

TileFunction TileOf(int rows) { return tile_of(rows, std::make_integer_sequence<int, kMaxRows>()); }
int MaxRows() { return kMaxRows; }

// 32 fp32 rows [32][cols] -> one panel [cols][32].
void PackPanel(const float* rows, int64_t cols, uint16_t* panel) {
  const Floats f;
  const Halves h;
  alignas(64) float column[kPanel];
  for (int64_t k = 0; k < cols; ++k) {
    for (int64_t n = 0; n < kPanel; ++n) column[n] = rows[n * cols + k];
    for (int v = 0; v < kVecs; ++v)
      hn::Store(hn::DemoteTo(h, hn::Load(f, column + v * kLanes)), h,
                reinterpret_cast<hwy::float16_t*>(panel) + k * kPanel + v * kLanes);
  }
}

void ToF16(const float* in, int64_t count, uint16_t* out) {
  const Floats f;
  const Halves h;
  const auto half = [&](const float* from, uint16_t* to) {
    hn::StoreU(hn::DemoteTo(h, hn::LoadU(f, from)), h, reinterpret_cast<hwy::float16_t*>(to));
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) half(in + i, out + i);
  if (i == count) return;
  float from[kLanes] = {};
  uint16_t to[kLanes];
  std::copy(in + i, in + count, from);
  half(from, to);
  std::copy(to, to + (count - i), out + i);
}

void FromF16(const uint16_t* in, int64_t count, float* out) {
  const Floats f;
  const Halves h;
  uint16_t from[kLanes] = {};
  float to[kLanes];
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = std::min<int64_t>(kLanes, count - i);
    std::copy(in + i, in + i + n, from);
    hn::StoreU(hn::PromoteTo(f, hn::LoadU(h, reinterpret_cast<const hwy::float16_t*>(from))), f, to);
    std::copy(to, to + n, out + i);
  }
}

float SumFloats(const float* data, int64_t count) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto a = hn::Zero(d), b = a, c = a, e = a;
  for (int64_t i = 0; i + 4 * lanes <= count; i += 4 * lanes) {
    hwy::Prefetch(data + i + 1024);
    a = hn::Add(a, hn::LoadU(d, data + i));
    b = hn::Add(b, hn::LoadU(d, data + i + lanes));
    c = hn::Add(c, hn::LoadU(d, data + i + 2 * lanes));
    e = hn::Add(e, hn::LoadU(d, data + i + 3 * lanes));
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(a, b), hn::Add(c, e))));
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace fulmen::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fulmen::engine {

HWY_EXPORT(TileOf);
HWY_EXPORT(MaxRows);
HWY_EXPORT(PackPanel);
HWY_EXPORT(ToF16);
HWY_EXPORT(FromF16);
HWY_EXPORT(SumFloats);
HWY_EXPORT(TargetName);

PackedMatrix::PackedMatrix(int64_t rows, int64_t cols)
    : rows_(rows), cols_(cols), data_(static_cast<size_t>((rows + kPanel - 1) / kPanel * kPanel * cols) * 2) {}

void PackedMatrix::fill(Pool& pool, const RowSource& row) {
  pool.parallel_for(num_panels(), [&](int64_t p) {
    thread_local std::vector<float> rows;
    rows.assign(static_cast<size_t>(kPanel * cols_), 0.0f);  // outputs past the last row are zeros
    for (int64_t n = p * kPanel; n < std::min(rows_, (p + 1) * kPanel); ++n)
      row(n, rows.data() + (n - p * kPanel) * cols_);
    HWY_DYNAMIC_DISPATCH(PackPanel)(rows.data(), cols_, data_.as<uint16_t>() + p * cols_ * kPanel);
  });
}

void PackedMatrix::read_row(int64_t n, float* out) const {
  const uint16_t* column = panel(n / kPanel) + n % kPanel;
  thread_local std::vector<uint16_t> halves;
  halves.resize(static_cast<size_t>(cols_));
  for (int64_t k = 0; k < cols_; ++k) halves[k] = column[k * kPanel];
  convert_from_f16(halves.data(), cols_, out);
}

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// x cut into tiles of rows, each packed [k][rows of the tile].
struct RowTiles {
  int64_t num_rows, rows_per_tile, cols;
  int64_t count() const { return ceil_div(num_rows, rows_per_tile); }
  int64_t rows_of(int64_t t) const { return std::min(rows_per_tile, num_rows - t * rows_per_tile); }
};

void pack_tile(const RowTiles& tiles, int64_t t, const float* x, int64_t x_stride, float* packed) {
  const int64_t rows = tiles.rows_of(t), first = t * tiles.rows_per_tile;
  float* out = packed + first * tiles.cols;
  for (int64_t r = 0; r < rows; ++r) {
    const float* in = x + (first + r) * x_stride;
    for (int64_t k = 0; k < tiles.cols; ++k) out[k * rows + r] = in[k];
  }
}

}  // namespace

void matmul(Pool& pool, const PackedMatrix& w, const float* x, int64_t num_rows, int64_t x_stride, const float* bias,
            float* y, int64_t y_stride, MatmulScratch& scratch) {
  if (num_rows == 0) return;
  constexpr int64_t kPanel = PackedMatrix::kPanel;
  const int64_t max_rows = HWY_DYNAMIC_DISPATCH(MaxRows)();
  const RowTiles tiles{num_rows, ceil_div(num_rows, ceil_div(num_rows, max_rows)), w.cols()};

  const float* packed = x;  // a single row needs no packing
  if (num_rows > 1) {
    scratch.tiles.resize(static_cast<size_t>(num_rows * w.cols()));
    const auto pack = [&](int64_t t) { pack_tile(tiles, t, x, x_stride, scratch.tiles.data()); };
    if (tiles.count() < 4) {
      for (int64_t t = 0; t < tiles.count(); ++t) pack(t);
    } else {
      pool.parallel_for(tiles.count(), pack);
    }
    packed = scratch.tiles.data();
  }

  // Few rows are bound by reading the weights: an item is a thread's whole share, one long walk through memory, which
  // hardware prefetching follows better than many short ones. Else an item is a few panels for a group of tiles: the
  // panels stay in the core's cache while the tiles pass.
  constexpr int64_t kTilesPerItem = 16;
  const int64_t wanted_items = tiles.count() == 1 ? pool.num_threads() : std::max<int64_t>(8 * pool.num_threads(), w.num_panels() / 8);
  const int64_t panel_items = std::min(wanted_items, w.num_panels());
  const int64_t tile_items = ceil_div(tiles.count(), kTilesPerItem);
  pool.parallel_for(panel_items * tile_items, [&](int64_t item) {
    const int64_t share = item % panel_items;
    const int64_t first_panel = w.num_panels() * share / panel_items;
    const int64_t last_panel = w.num_panels() * (share + 1) / panel_items;
    const int64_t first_tile = item / panel_items * kTilesPerItem;
    const int64_t last_tile = std::min(first_tile + kTilesPerItem, tiles.count());
    for (int64_t p = first_panel; p < last_panel; ++p) {
      const int64_t n0 = p * kPanel, outputs = std::min(kPanel, w.rows() - n0);
      for (int64_t t = first_tile; t < last_tile; ++t) {
        const int64_t r0 = t * tiles.rows_per_tile, rows = tiles.rows_of(t);
        const auto tile = HWY_DYNAMIC_DISPATCH(TileOf)(static_cast<int>(rows));
        float* out = y + r0 * y_stride + n0;
        if (outputs == kPanel) {
          tile(w.panel(p), packed + r0 * w.cols(), w.cols(), out, y_stride);
        } else {  // the last panel is wider than y
          float wide[16 * kPanel];
          tile(w.panel(p), packed + r0 * w.cols(), w.cols(), wide, kPanel);
          for (int64_t r = 0; r < rows; ++r) std::copy_n(wide + r * kPanel, outputs, out + r * y_stride);
        }
        if (bias)
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t n = 0; n < outputs; ++n) out[r * y_stride + n] += bias[n0 + n];
      }
    }
  });
}

void convert_to_f16(const float* in, int64_t count, uint16_t* out) { HWY_DYNAMIC_DISPATCH(ToF16)(in, count, out); }
void convert_from_f16(const uint16_t* in, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(FromF16)(in, count, out);
}

void convert_to_bf16(const float* in, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, in + i, 4);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    out[i] = nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
  }
}

float sum_floats(const float* data, int64_t count) { return HWY_DYNAMIC_DISPATCH(SumFloats)(data, count); }
const char* simd_target() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

}  // namespace fulmen::engine
#endif
