// A row minus its mean (layer norm) or as it is (RMSNorm), over the root of its mean square.
//
// formula   y = x, or the new residual: residual += x, rounded to its dtype
//           RMSNorm:   out = y / sqrt(mean(y^2) + eps) (weight + offset)
//           LayerNorm: out = (y - mean) / sqrt(mean((y - mean)^2) + eps) weight + bias
// grid      a block per row (token, head), rows strided over the grid
// registers the row as it is stored, as far as kNormHeld vectors a thread reach: it crosses memory once; all of a thread's loads are in flight
//           before it uses the first. Longer rows are read again. The variance is summed around the mean, not as a difference of
//           squares, which would cancel
// barriers  those of the reductions
#pragma once

#include <kernels/math/reciprocal.hpp>
#include <kernels/norm/norm.config.hpp>
#include <kernels/ptx/griddep.cuh>
#include <kernels/ptx/special.cuh>
#include <kernels/tile/reduce.cuh>
#include <kernels/tile/vectors.cuh>

namespace fulmen {

template <class T, class W>
struct NormRow {
  const T* x;
  T* residual;      // where one is added
  T* out;
  const W* weight;
  const W* bias;    // nullable
  int vectors;
  float inverse_hidden, eps, weight_offset;
  bool wide_weight, wide_bias;  // they start at 16 bytes
  bool far;         // the outputs of all rows don't fit into L2: nobody will find them there
};

// Weights or biases of one vector of a row: 16 bytes at a time where `wide` allows, an eighth of the loads. The largest blocks have no
// registers for that.
template <NormConfig kC, class W>
struct NormRun {
  static constexpr int kN = kC.vector(), kPart = 16 / static_cast<int>(sizeof(W));
  static constexpr bool kWide = kN % kPart == 0 && kC.threads < 1024;
  Packed<W, kWide ? kPart : 1> parts[kWide ? kN / kPart : 1];

  FULMEN_DEVICE void load(const W* p, bool wide) {
    if constexpr (kWide) {
      if (!wide) return;
#pragma unroll
      for (int i = 0; i < kN / kPart; ++i) parts[i] = load_packed<W, kPart>(p + i * kPart);
    }
  }
  FULMEN_DEVICE void values(const W* p, bool wide, float (&w)[kN]) const {
    if constexpr (kWide) {
      if (wide) {
#pragma unroll
        for (int i = 0; i < kN / kPart; ++i) unpack(parts[i], *reinterpret_cast<float(*)[kPart]>(w + i * kPart));
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) w[i] = to_float(p[i]);
  }
};

// What a thread has of a row between reading and writing it, as it is stored.
template <NormConfig kC, bool kAdds, class T>
struct NormHeld {
  static constexpr int kN = kC.vector();
  Packed<T, kN> x[kNormHeld], residual[kAdds ? kNormHeld : 1];

  FULMEN_DEVICE void load(const T* from, const T* residual_from, int vectors) {
#pragma unroll
    for (int h = 0; h < kNormHeld; ++h) {
      const int v = static_cast<int>(threadIdx.x) + h * kC.threads;
      if (v >= vectors) continue;
      x[h] = load_packed<T, kN>(from + v * kN, true);
      // Through L1 in the largest blocks, where the other way would spill.
      if constexpr (kAdds) residual[h] = load_packed<T, kN>(residual_from + v * kN, kC.threads < 1024);
    }
  }
};

// load_next() comes while the block adds up: the next row is then on its way.
template <NormConfig kC, bool kCentred, bool kAdds, class T, class W, class Next>
FULMEN_DEVICE void normalise(const NormRow<T, W>& row, NormHeld<kC, kAdds, T>& held_row, Next&& load_next) {
  constexpr int kN = kC.vector(), kThreads = kC.threads;
  const int first = static_cast<int>(threadIdx.x);
  auto& held = held_row.x;
  const auto add = [&](Packed<T, kN>& y, const Packed<T, kN>& r, int v) {
    float f[kN], g[kN];
    unpack(y, f);
    unpack(r, g);
#pragma unroll
    for (int i = 0; i < kN; ++i) f[i] += g[i];
    y = packed<T>(f);
    store_packed(row.residual + v * kN, y, row.far);
  };
  // body(v, y) for the vectors beyond those held, again from memory; the first time the residual is made.
  const auto each_more = [&](bool again, auto&& body) {
    float y[kN];
#pragma unroll 1
    for (int v = first + kNormHeld * kThreads; v < row.vectors; v += kThreads) {
      Packed<T, kN> long_row = load_packed<T, kN>((again && kAdds ? row.residual : row.x) + v * kN);
      if constexpr (kAdds) {
        if (!again) add(long_row, load_packed<T, kN>(row.residual + v * kN), v);
      }
      unpack(long_row, y);
      body(v, y);
    }
  };
  const auto each = [&](bool again, auto&& body) {
    float y[kN];
#pragma unroll
    for (int h = 0; h < kNormHeld; ++h) {
      const int v = first + h * kThreads;
      if (v < row.vectors) {
        if constexpr (kAdds) {
          if (!again) add(held[h], held_row.residual[h], v);
        }
        unpack(held[h], y);
        body(v, y);
      }
    }
    each_more(again, body);
  };
  float mean = 0.0f, squares = 0.0f;
  if constexpr (kCentred) {
    float sum = 0.0f;
    each(false, [&](int, const float(&y)[kN]) {
#pragma unroll
      for (int i = 0; i < kN; ++i) sum += y[i];
    });
    mean = block_sum<kThreads>(sum) * row.inverse_hidden;
  }
  each(kCentred, [&](int, const float(&y)[kN]) {
#pragma unroll
    for (int i = 0; i < kN; ++i) squares = fma(y[i] - mean, y[i] - mean, squares);
  });
  constexpr bool kAhead = kThreads < 1024 && sizeof(W) <= sizeof(T);  // else there are no registers for them
  NormRun<kC, W> weights[kAhead ? kNormHeld : 1];
  if constexpr (kAhead) {
#pragma unroll
    for (int h = 0; h < kNormHeld; ++h) {
      const int v = first + h * kThreads;
      if (v < row.vectors) weights[h].load(row.weight + v * kN, row.wide_weight);
    }
  }
  load_next();
  const float scale = reciprocal_sqrt(fma(block_sum<kThreads>(squares), row.inverse_hidden, row.eps));
  const auto finish = [&](int v, const float(&y)[kN], const NormRun<kC, W>& run) {
    float result[kN], w[kN];
    run.values(row.weight + v * kN, row.wide_weight, w);
    if constexpr (kCentred) {
      float b[kN] = {};
      if (row.bias != nullptr) {
        NormRun<kC, W> biases;
        biases.load(row.bias + v * kN, row.wide_bias);
        biases.values(row.bias + v * kN, row.wide_bias, b);
      }
#pragma unroll
      for (int i = 0; i < kN; ++i) result[i] = fma((y[i] - mean) * scale, w[i], b[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kN; ++i) result[i] = y[i] * scale * (w[i] + row.weight_offset);
    }
    store_packed(row.out + v * kN, packed<T>(result), row.far);
  };
#pragma unroll
  for (int h = 0; h < kNormHeld; ++h) {
    const int v = first + h * kThreads;
    float y[kN];
    if (v < row.vectors) {
      // The row waited for its sum as it is stored: as floats it would take twice the registers, and fewer blocks would be in flight.
      unpack(unknown(held[h]), y);
      if constexpr (!kAhead) weights[0].load(row.weight + v * kN, row.wide_weight);
      finish(v, y, weights[kAhead ? h : 0]);
    }
  }
  each_more(true, [&](int v, const float(&y)[kN]) {
    NormRun<kC, W> run;
    run.load(row.weight + v * kN, row.wide_weight);
    finish(v, y, run);
  });
}

// The block's rows, one behind the other.
template <NormConfig kC, bool kCentred, bool kAdds, class T, class W, class Params>
FULMEN_DEVICE void norm_rows(const Params& p, NormRow<T, W>& row) {
  const uint32_t rows = static_cast<uint32_t>(p.num_tokens * p.num_heads), heads = static_cast<uint32_t>(p.num_heads);
  const auto place = [&](uint32_t at) {
    const uint32_t token = at / heads, head = at - token * heads;
    row.x = static_cast<const T*>(p.x) + token * p.x_stride_token + head * p.x_stride_head;
    row.out = static_cast<T*>(p.out) + token * p.out_stride_token + head * p.out_stride_head;
    if constexpr (kAdds) row.residual = static_cast<T*>(p.residual) + token * p.residual_stride_token + head * p.residual_stride_head;
  };
  NormHeld<kC, kAdds, T> held;
  if constexpr (kAdds || kC.threads > kNormPipelined) {
    for (uint32_t at = blockIdx.x; at < rows; at += gridDim.x) {
      place(at);
      held.load(row.x, row.residual, row.vectors);
      normalise<kC, kCentred, kAdds>(row, held, [] {});
    }
  } else {
    if (blockIdx.x >= rows) return;
    place(blockIdx.x);
    held.load(row.x, row.residual, row.vectors);
    for (uint32_t at = blockIdx.x;;) {
      const NormRow<T, W> now = row;
      NormHeld<kC, kAdds, T> next;
      at += gridDim.x;  // no sum can wrap around: rows are below 2^31
      const bool more = at < rows;
      if (more) place(at);
      normalise<kC, kCentred, kAdds>(now, held, [&] {
        if (more) next.load(row.x, row.residual, row.vectors);
      });
      if (!more) break;
      held = next;
    }
  }
}

// Rows of either op: what LayerNormParams lacks is null or zero.
template <NormConfig kC, bool kCentred, class Params>
FULMEN_DEVICE void norm(const Params& p) {
  using T = storage_t<kC.dtype>;
  using W = storage_t<kC.weight_dtype>;
  NormRow<T, W> row{};
  row.weight = static_cast<const W*>(p.weight);
  row.wide_weight = reinterpret_cast<uintptr_t>(p.weight) % 16 == 0;
  row.vectors = p.hidden / kC.vector();
  row.inverse_hidden = reciprocal(static_cast<float>(p.hidden));
  row.eps = p.eps;
  row.far = p.num_tokens * p.num_heads * p.hidden > kFarBytes / static_cast<int>(sizeof(T));
  if constexpr (kCentred) {
    row.bias = static_cast<const W*>(p.bias);
    row.wide_bias = reinterpret_cast<uintptr_t>(p.bias) % 16 == 0;
  } else {
    row.weight_offset = p.weight_offset;
  }
  ptx::griddep_launch_dependents();
  ptx::griddep_wait();
  if constexpr (!kCentred) {
    if (p.residual != nullptr) {
      norm_rows<kC, false, true>(p, row);
      return;
    }
  }
  norm_rows<kC, kCentred, false>(p, row);
}

}  // namespace fulmen
