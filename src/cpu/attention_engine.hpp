// The inner part of attention on the CPU: one tile of packed rows against one block of 64 keys, in the order of
// arithmetic that kernels/math/canon.hpp fixes. Two engines: fp32 arithmetic for every dtype (Highway, run-time
// dispatch), and bf16 dot products where the CPU has vdpbf16ps.
//
// An engine's results for a row depend on that row, its visible keys and nothing else: each score sums over head_dim
// in order in its own lane, each output element over the block's keys in order.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.params.hpp"

namespace fulmen::cpu {

inline constexpr int kBlock = canon::kKeyBlock;
inline constexpr int kTileRows = 128;       // most packed rows of a tile
inline constexpr int kMaxHeadDim = 256;

// Partial state of some rows: o [rows, ld], m and l [rows]; m in units of log2.
struct State {
  float* o;
  float* m;
  float* l;
};

// A row of the tile and what it may see.
struct TileRow {
  const void* q;         // head_dim_qk elements
  int32_t first, limit;  // visible keys: absolute positions [first, limit)
  int32_t position;      // of the row
  int32_t qo_head;
  int64_t mask_bit;      // custom mask: bit of key 0
  int64_t mask_end;      // first bit of this request's mask that doesn't exist
};

// Rows of one kv head: a tile, or a wide tile's part.
struct TileWork {
  const AttentionParams* params;
  int32_t num_rows;
  int32_t qk_dim, vo_dim;      // true head dims
  int32_t qk_pad, vo_pad;      // rounded up to 16
  float scale_log2;            // sm_scale * log2(e): plain rows only
  TileRow* rows;
  uint64_t* visible;           // [rows] of the current block: bit j is key j
  float* alpha;                // [rows] by how much this block's maximum shrinks the state
  int32_t head_rows;           // rows of each kv head: num_rows but for a whole wide tile
  int64_t q_row_bytes;         // of a packed query; written by load_q
  void* q;                     // packed queries, in the engine's form: 8 bytes per padded element at most
  void* k;                     // one packed key block
  float* v;                    // one packed value block, in the engine's form
  float* s;                    // [rows, 64] scores, then weights
  float* l;                    // [rows, 64] row sums by key class
  float* spare;                // a second value block, for rows whose hidden values aren't finite
};

// Stands for rows that nobody sees: zeros in any dtype, kMaxHeadDim long.
alignas(64) inline constexpr float kZeroRow[kMaxHeadDim] = {};

// Brings the next key block to the second cache while this one is computed with, a line of K and a line of V in turns,
// each in the order of addresses. On Zen 5 that is what it takes: a core's own misses, prefetches among them, are
// limited to about 20 GB/s, and only its hardware prefetcher, which follows two such streams, reads at 33.
struct Prefetcher {
  const void* const* k;  // rows of the first head
  const void* const* v;
  int64_t k_head_bytes, v_head_bytes;  // from head to head
  int32_t k_span, v_span;              // bytes of a row that lie together
  int32_t rows, heads;                 // rows left out of a span are visited head by head
  int32_t row, head, offset;

  // One line of each.
  [[gnu::always_inline]] void line_pair() {
    if (row >= rows) return;
    const char* k_row = static_cast<const char*>(k[row]) + head * k_head_bytes;
    const char* v_row = static_cast<const char*>(v[row]) + head * v_head_bytes;
    if (offset < k_span) __builtin_prefetch(k_row + offset, 0, 2);
    if (offset < v_span) __builtin_prefetch(v_row + offset, 0, 2);
    offset += 64;
    if (offset < k_span || offset < v_span) return;
    offset = 0;
    if (++row == rows && ++head < heads) row = 0;
  }
};

// One block of keys. Rows of keys nobody sees, and those past the end, are kZeroRow.
struct KeyBlock {
  int32_t base;                    // position of key 0, a multiple of 64
  int32_t count;                   // keys 0 .. count - 1 may be seen by some row
  const void** k;                  // [64] rows of head_dim elements
  const void** v;
  const void** next_k;             // of the block that comes next
  const void** next_v;
  Prefetcher next;
};

struct Engine {
  const char* name;
  // Packs the queries of work.rows.
  void (*load_q)(TileWork& work);
  // s[r, j] = q[r] . k[j], for the rows that see something of the block.
  void (*scores)(TileWork& work, KeyBlock& block);
  // Visibility, logits, running maximum, weights, row sums. `fresh`: the first block of its chunk.
  void (*weights)(TileWork& work, KeyBlock& block, State& state, bool fresh);
  // o = alpha o + p v.
  void (*values)(TileWork& work, KeyBlock& block, State& state, bool fresh);
  // Row sums by class -> state.l.
  void (*fold_sums)(TileWork& work, State& state);
  // into = into joined with from, rows of stride ld.
  void (*join)(const State& into, const State& from, int32_t rows, int32_t ld);
  // o / l in the output's dtype; sink_log2: a logit that joins the sum, -inf: none.
  void (*store)(const float* o, float m, float l, float sink_log2, const AttentionParams& params, void* out,
                float* lse);
};

const Engine& fp32_engine();
// null where the CPU lacks vdpbf16ps.
const Engine* bf16_engine();

}  // namespace fulmen::cpu
