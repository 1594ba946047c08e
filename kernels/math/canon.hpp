// The canon: the order of arithmetic that makes an attention row's bits a function of its query, its keys and its
// position alone. Every attention kernel of an architecture class obeys it (the CPU's always, the GPU's in
// batch-invariant mode), so that neighbours, thread counts, splits over workers, chunked prompts and shared prefixes
// leave no trace, and decode gives the bits that prefill gives for the same token.
//
//   key block   64 keys at absolute multiples of 64. The running maximum moves, and P is rounded, only here.
//   chunk       256 keys at absolute multiples of 256. Each starts from the empty state (m = -inf, l = 0, o = 0).
//   row sum     on the CPU 64 sums, one per key class (key mod 64), folded once per chunk: l[i] += l[i + 32], then + 16, 8,
//               4, 2, 1. On a GPU a sum per lane of the row's quad, in the tree of softmax_step, folded once per chunk.
//   chunk tree  the states of chunks 0, 1, 2, ... are joined in the binary tree over aligned ranges of chunk indices:
//               two neighbours meet at the smallest aligned range of 2^k chunks that holds both. An empty state is
//               the exact identity, so chunks that a row doesn't see change nothing (but for the sign of a zero, which
//               a GPU takes away at the end).
//
// Whoever holds a run of consecutive chunks folds it with FoldStack; whoever holds a part of a row's chunks cuts the
// part into nodes (node_end), folds each and leaves them for the one who joins the nodes with the same FoldStack.
#pragma once
#include <kernels/math/integer.hpp>
#include <kernels/prelude/prelude.hpp>

namespace fulmen::canon {

inline constexpr int32_t kKeyBlock = 64;
inline constexpr int32_t kChunkLog2 = 8;
inline constexpr int32_t kChunkKeys = 1 << kChunkLog2;

// Height at which chunk a and a later chunk b meet in the tree: the smaller, the earlier they are joined.
FULMEN_FN int32_t meet_height(int32_t a, int32_t b) {
  return log2_floor(static_cast<uint32_t>(a) ^ static_cast<uint32_t>(b));
}

// Nodes that a run of chunks with one cut end can need, when chunk indices stay below max_chunks: one per height.
FULMEN_FN int32_t max_nodes_per_cut(int32_t max_chunks) {
  return max_chunks <= 2 ? 1 : log2_floor(static_cast<uint32_t>(max_chunks - 1)) + 1;
}

// The largest node that begins at chunk `begin` and doesn't pass `end`: an aligned range, where chunks outside
// [first, last), which nobody holds, count as empty. Returns the node's end.
FULMEN_FN int32_t node_end(int32_t begin, int32_t end, int32_t first, int32_t last) {
  int32_t node = begin + 1;
  for (int32_t height = 1;; ++height) {  // ends: the range grows until it holds all or passes an end
    const int32_t low = (begin >> height) << height;
    const int32_t left = low < first ? first : low;
    // The range's end without overflow: it is compared with last only.
    const int64_t high = static_cast<int64_t>(low) + (static_cast<int64_t>(1) << height);
    const int32_t right = high > last ? last : static_cast<int32_t>(high);
    if (left < begin || right > end) break;
    node = right;
    if (left == first && right == last) break;  // the whole tree
  }
  return node;
}

// The same walk without arrays: how many states stand on the stack when runs from chunk `first` on have been pushed,
// the last up to `end`, and all joins are done that are due before a run that begins at `next` (>= end > first): one
// for each ancestor boundary of `next` that lies inside.
FULMEN_FN int32_t fold_depth(int32_t first, int32_t end, int32_t next) {
  int32_t depth = 1;
  for (int32_t boundary = next & (next - 1); boundary > first; boundary &= boundary - 1) depth += boundary < end ? 1 : 0;
  return depth;
}

// What to do with the state of run [begin, end) of node [first, last), for whoever computes the node's runs in order: join
// it with `joins` states from the stack, of which `depth` stand there, top first. Then it is number depth - joins of the
// stack, or the node itself if end == last.
struct FoldStep {
  int32_t depth, joins;
};
FULMEN_FN FoldStep fold_step(int32_t first, int32_t begin, int32_t end, int32_t last) {
  const int32_t depth = begin > first ? fold_depth(first, begin, begin) : 0;
  return {depth, end == last ? depth : depth + 1 - fold_depth(first, end, end)};
}

// What lies on the stack: consecutive runs of chunks, each folded into one state. push() says how many of the
// topmost joins are due before the new run may be laid on top; finish() joins what is left. Join is always
// (second from top, top) -> second from top.
struct FoldStack {
  static constexpr int32_t kMaxDepth = 40;
  int32_t begin[kMaxDepth], end[kMaxDepth];
  int32_t depth = 0;

  FULMEN_FN void clear() { depth = 0; }
  FULMEN_FN int32_t joins_before(int32_t next_begin) const {
    if (depth == 0) return 0;
    const int32_t height = meet_height(end[depth - 1] - 1, next_begin);
    int32_t joins = 0;
    while (depth - joins >= 2 && meet_height(end[depth - joins - 2] - 1, begin[depth - joins - 1]) < height) ++joins;
    return joins;
  }
  FULMEN_FN void joined() {
    end[depth - 2] = end[depth - 1];
    --depth;
  }
  FULMEN_FN void push(int32_t run_begin, int32_t run_end) {
    begin[depth] = run_begin;
    end[depth] = run_end;
    ++depth;
  }
};

// Factors that join two states, maxima in units of log2: o = a o_a + b o_b, l = a l_a + b l_b, m.
// exp2 is the back end's. One factor is exactly 1; where a state is empty its partner's is, and the caller must then
// copy the partner (0 * o_b would turn -0 into +0).
struct JoinFactors {
  float a, b, m;
};
template <class Exp2>
FULMEN_FN JoinFactors join_factors(float m_a, float m_b, Exp2 exp2) {
  const float m = m_a < m_b ? m_b : m_a;
  const float base = m == -infinity() ? 0.0f : m;
  return {exp2(m_a - base), exp2(m_b - base), m};
}

}  // namespace fulmen::canon
