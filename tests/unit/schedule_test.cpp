// The schedule on random lengths: every unit of every tile is in exactly one worker's hands, shares differ by less than
// a unit, partial states have slots of their own inside the declared sizes, nodes tile each piece.
#include "kernels/attention/schedule.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace {

using namespace fulmen;

struct Problem {
  ScheduleShape shape{};
  std::vector<std::vector<int32_t>> qo_indptr, kv_len;
  std::vector<int64_t> memory;

  void plan() {
    ScheduleLengths lengths{};
    lengths.num_levels = shape.num_levels;
    lengths.page_size = 16;
    for (int l = 0; l < shape.num_levels; ++l) {
      const size_t i = static_cast<size_t>(l);
      lengths.levels[l].qo_indptr = qo_indptr[i].data();
      lengths.levels[l].kv_len = kv_len[i].data();
      lengths.levels[l].num_segments = static_cast<int32_t>(kv_len[i].size());
    }
    memory.assign(static_cast<size_t>(plan_bytes(shape) / 8) + 1, 0x5a5a5a5a5a5a5a5a);
    plan_serial(shape, lengths, memory.data());
    ASSERT_EQ(memory.back(), 0x5a5a5a5a5a5a5a5a) << "plan memory overrun";
  }
};

// Cheap random numbers: a million patterns are drawn.
struct Random {
  uint64_t state;
  uint32_t operator()(uint32_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>((state >> 33) % n);
  }
};

Problem draw(Random& random) {
  Problem p;
  const uint32_t size = random(100);
  const int32_t requests = static_cast<int32_t>(size < 70 ? random(4) : random(size < 99 ? 12 : 80));
  p.shape.num_levels = random(4) == 0 ? 2 : 1;
  p.shape.num_groups = 1;
  p.shape.unit_log2 = random(2) ? 8 : 6;
  p.shape.canonical = random(3) != 0;
  ScheduleGroup& g = p.shape.groups[0];
  g.num_kv_heads = 1 + static_cast<int32_t>(random(4));
  g.group_size = 1 + static_cast<int32_t>(random(9));
  g.causal = random(4) != 0;
  g.window_left = random(3) ? -1 : static_cast<int32_t>(random(600));
  g.tile_q = random(2) ? 16 : 128;
  g.num_workers = 1 + static_cast<int32_t>(random(random(2) ? 8 : 140));
  g.cost_fixed = static_cast<int32_t>(random(3));
  g.cost_per_row = g.cost_fixed ? static_cast<int32_t>(random(2)) : 1;
  g.wide_rows = random(2) ? g.tile_q : 0;
  g.wide_keys = static_cast<int32_t>(random(600));
  if (p.shape.num_levels == 1 && g.cost_per_row == 0 && g.wide_rows == 0) {  // as kernels of decode tiles have it
    g.tile_cost = static_cast<int32_t>(random(3));
    g.piece_units = static_cast<int32_t>(random(3));
  }
  p.qo_indptr.resize(static_cast<size_t>(p.shape.num_levels));
  p.kv_len.resize(static_cast<size_t>(p.shape.num_levels));
  auto& last = p.qo_indptr.back();
  last.push_back(0);
  int64_t longest = 1, longest_rows = 1;
  for (int32_t r = 0; r < requests; ++r) {
    const int32_t rows = static_cast<int32_t>(random(3) ? random(3) : random(100));
    const int32_t keys = static_cast<int32_t>(random(4) ? random(700) : random(9000));
    last.push_back(last.back() + rows);
    p.kv_len.back().push_back(keys);
    longest = std::max<int64_t>(longest, keys);
    longest_rows = std::max<int64_t>(longest_rows, rows);
  }
  if (p.shape.num_levels == 2) {
    int64_t prefix_longest = 0;
    p.qo_indptr[0].push_back(0);
    for (int32_t r = 0; r < requests;) {
      r = std::min(requests, r + 1 + static_cast<int32_t>(random(4)));
      p.qo_indptr[0].push_back(last[static_cast<size_t>(r)]);
      p.kv_len[0].push_back(static_cast<int32_t>(random(2000)));
      prefix_longest = std::max<int64_t>(prefix_longest, p.kv_len[0].back());
    }
    longest += prefix_longest;
  }
  p.shape.max_requests = std::max(1, requests);
  p.shape.max_rows = std::max(1, last.back());
  p.shape.max_qo_len = longest_rows;
  p.shape.max_kv_len = longest;
  return p;
}

// Records without padding.
template <class T>
bool same_bytes(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

#define REQUIRE(x) if (!(x)) { ADD_FAILURE() << "pattern " << pattern << ": " #x; return; }

void check(Problem& p, int64_t pattern, std::vector<int32_t>& owner) {
  p.plan();
  const ScheduleShape& shape = p.shape;
  const ScheduleGroup& g = shape.groups[0];
  const PlanView plan(shape, p.memory.data());
  REQUIRE(plan.header->status.fault == kFaultNone);
  const SlotLayout layout = slot_layout(shape);
  const int64_t total = total_cost(shape, plan, 0);
  owner.assign(static_cast<size_t>(num_slots(layout)), 0);
  // Walk all tiles in order beside the workers' pieces.
  int32_t level = 0, segment = 0, head = 0, index = -1;
  Segment s{};
  int32_t tiles = 0;
  int64_t line = 0, units_cost = 0, first_cost = 0;
  bool alike = shape.num_levels == 1;
  Tile tile{};
  bool started = false;
  const auto next_tile = [&]() {
    while (true) {
      if (started && ++index < tiles) break;
      if (started && tiles > 0 && ++head < head_turns(g, s)) {
        index = 0;
        break;
      }
      if (started) ++segment;
      started = true;
      head = 0, index = 0;
      while (level < shape.num_levels && segment >= plan.header->num_segments[level]) ++level, segment = 0;
      if (level == shape.num_levels) return false;
      s = load_segment(shape, plan, level, segment);
      tiles = num_tiles(g, s);
      if (tiles > 0) break;
    }
    tile = make_tile(shape, g, s, head, index);
    tile.cost_begin = line;
    line += tile.cost() + plan.header->gap[0];
    units_cost += tile.cost();
    alike = alike && tiles == 1 && (first_cost == 0 || tile.cost() == first_cost);
    first_cost = tile.cost();
    return true;
  };
  int32_t done = 0;  // units of `tile` seen so far
  bool inside = false;
  int64_t max_share = 0, max_unit = 0;
  int32_t most_pieces = 0;
  for (int32_t w = 0; w < g.num_workers; ++w) {
    PieceCursor cursor(shape, plan, 0, w);
    Piece piece;
    int64_t share = 0;
    int32_t pieces = 0;
    while (cursor.next(piece)) {
      if (pieces++ == 0 && shape.num_levels == 1) {  // what the plan kernel writes is the same walk
        WorkerStart start;
        find_start(shape, plan, 0, w, start);
        REQUIRE(start.exists && same_bytes(start.piece, piece) && same_bytes<CursorState>(start.cursor, cursor));
      }
      if (!inside) {
        REQUIRE(next_tile());
        REQUIRE(tile_cost_begin(shape, plan, 0, s, head, index) == tile.cost_begin);
        done = 0;
      }
      const Tile& t = piece.tile;
      REQUIRE(t.level == level && t.segment == segment && t.head == head && t.index == index);
      REQUIRE(t.cost_begin == tile.cost_begin && t.num_rows > 0 && t.num_rows * t.num_heads <= g.tile_q);
      REQUIRE(piece.starts_tile == (done == 0));
      const bool empty = t.unit_end <= t.unit_begin;
      REQUIRE(piece.unit_begin == t.unit_begin + (empty ? 0 : done));
      const int32_t units = empty ? 1 : piece.unit_end - piece.unit_begin;
      REQUIRE(units > 0);
      done += units;
      REQUIRE(done <= t.cost_units() && piece.ends_tile == (done == t.cost_units()));
      inside = !piece.ends_tile;
      share += units * t.unit_cost;
      max_unit = std::max<int64_t>(max_unit, t.unit_cost);
      if (is_complete(piece)) continue;
      int64_t slot = first_slot(shape, layout, plan, 0, piece, w);
      NodeCursor nodes(shape, piece);
      int32_t at = piece.unit_begin, begin, end;
      while (nodes.next(begin, end)) {
        REQUIRE(begin == at && end > begin && end <= piece.unit_end);
        REQUIRE(slot >= 0 && slot < num_slots(layout) && owner[static_cast<size_t>(slot)]++ == 0);
        ++slot;
        at = end;
      }
      REQUIRE(at == piece.unit_end);
    }
    max_share = std::max(max_share, share);
    most_pieces = std::max(most_pieces, pieces);
  }
  REQUIRE(!inside && !next_tile() && line == total);
  // Nobody has more than an equal part of the line and a unit; where tiles are cut evenly or not at all, than that, two units
  // and a 32nd.
  const int64_t unit = g.cost_fixed + g.cost_per_row, share = plan.header->share[0], gap = plan.header->gap[0];
  const int64_t num_tiles = plan.header->level_tiles[0][shape.num_levels];
  REQUIRE(max_share <= share + max_unit);
  const int64_t least = unit * std::max(1, g.piece_units);
  if (share == std::max(least, (total + g.num_workers - 1) / g.num_workers) && gap == (num_tiles > g.num_workers ? g.tile_cost : 0)) return;
  REQUIRE(g.piece_units > 0 && alike && max_share == share);
  if (num_tiles > g.num_workers) {
    REQUIRE(gap == 0 && share * num_tiles % units_cost == 0);  // whole tiles
  } else {
    REQUIRE(most_pieces == 1);
  }
  const int64_t equal = (units_cost + g.num_workers - 1) / g.num_workers;
  REQUIRE(share <= equal + 2 * unit + equal / 32);
}

TEST(Schedule, EveryTileExactlyOnceOnAMillionPatterns) {
  const char* given = std::getenv("FULMEN_SCHEDULE_PATTERNS");
  const int64_t patterns = given ? std::atoll(given) : 1000000;
  std::vector<int32_t> owner;
  Random random{42};
  for (int64_t i = 0; i < patterns && !testing::Test::HasFailure(); ++i) {
    Problem p = draw(random);
    check(p, i, owner);
  }
}

// What TilePieces says of a tile is what the workers do.
TEST(Schedule, TilePiecesAgreeWithWorkers) {
  Random random{7};
  for (int64_t pattern = 0; pattern < 20000; ++pattern) {
    Problem p = draw(random);
    p.plan();
    const PlanView plan(p.shape, p.memory.data());
    for (int32_t w = 0; w < p.shape.groups[0].num_workers; ++w) {
      PieceCursor cursor(p.shape, plan, 0, w);
      Piece piece;
      while (cursor.next(piece)) {
        TilePieces pieces(p.shape, plan, 0, piece.segment, piece.tile);
        Piece other;
        int32_t worker, found = 0;
        while (pieces.next(other, worker)) {
          if (worker != w) continue;
          ++found;
          ASSERT_EQ(other.unit_begin, piece.unit_begin) << pattern;
          ASSERT_EQ(other.unit_end, piece.unit_end) << pattern;
          ASSERT_EQ(other.starts_tile, piece.starts_tile) << pattern;
          ASSERT_EQ(other.ends_tile, piece.ends_tile) << pattern;
        }
        ASSERT_EQ(found, 1) << pattern;
      }
    }
  }
}

// Short batches of requests that are all alike: every tile in pieces of one size, one a worker.
TEST(Schedule, TilesThatAreAlikeAreCutEvenly) {
  struct Row {
    int32_t requests, keys, heads, piece_units, units;  // units: of a piece
  };
  for (const Row& row : {Row{1, 1024, 8, 1, 1}, Row{1, 1024, 8, 2, 2}, Row{16, 1024, 8, 2, 16}, Row{1, 1100, 8, 1, 2}, Row{1, 60, 8, 2, 1},
                         Row{1, 16384, 8, 2, 16}, Row{132, 640, 1, 2, 10}}) {
    Problem p;
    p.shape.num_levels = p.shape.num_groups = 1;
    p.shape.unit_log2 = 6;
    p.shape.max_requests = p.shape.max_rows = row.requests;
    p.shape.max_qo_len = 1;
    p.shape.max_kv_len = row.keys;
    p.shape.groups[0] = {row.heads, 4, 1, -1, 16, 132, 1, 0, 0, 0, 0, 1, row.piece_units};
    p.qo_indptr.resize(1);
    p.kv_len.assign(1, std::vector<int32_t>(static_cast<size_t>(row.requests), row.keys));
    for (int32_t r = 0; r <= row.requests; ++r) p.qo_indptr[0].push_back(r);
    p.plan();
    const PlanView plan(p.shape, p.memory.data());
    for (int32_t w = 0; w < 132; ++w) {
      PieceCursor cursor(p.shape, plan, 0, w);
      Piece piece;
      if (!cursor.next(piece)) continue;
      EXPECT_LE(piece.unit_end - piece.unit_begin, row.units);
      if (!piece.ends_tile) EXPECT_EQ(piece.unit_end - piece.unit_begin, row.units);
      EXPECT_FALSE(cursor.next(piece));
    }
  }
}

// Where workers would be as good as evenly busy with whole tiles, none is cut, so that they begin tiles at one time.
TEST(Schedule, ManyTilesThatAreAlikeStayWhole) {
  struct Row {
    int32_t requests, keys, heads, whole;  // tiles of a worker, 0: they are cut
  };
  for (const Row& row : {Row{64, 4096, 8, 4}, Row{64, 33024, 32, 16}, Row{256, 1024, 8, 16}, Row{16, 34816, 8, 1}, Row{100, 4096, 8, 0}}) {
    Problem p;
    p.shape.num_levels = p.shape.num_groups = 1;
    p.shape.unit_log2 = 6;
    p.shape.max_requests = p.shape.max_rows = row.requests;
    p.shape.max_qo_len = 1;
    p.shape.max_kv_len = row.keys;
    p.shape.groups[0] = {row.heads, 4, 1, -1, 16, 132, 1, 0, 0, 0, 0, 1, 2};
    p.kv_len.assign(1, std::vector<int32_t>(static_cast<size_t>(row.requests), row.keys));
    p.qo_indptr.resize(1);
    for (int32_t r = 0; r <= row.requests; ++r) p.qo_indptr[0].push_back(r);
    p.plan();
    const PlanView plan(p.shape, p.memory.data());
    bool cut = false;
    for (int32_t w = 0; w < 132; ++w) {
      PieceCursor cursor(p.shape, plan, 0, w);
      Piece piece;
      int32_t tiles = 0;
      for (; cursor.next(piece); ++tiles) cut = cut || !piece.starts_tile || !piece.ends_tile;
      if (row.whole > 0) EXPECT_LE(tiles, row.whole);
    }
    EXPECT_EQ(cut, row.whole == 0);
  }
}

// The tree by runs is the tree by single chunks: shapes are compared as text.
struct Shapes {
  std::vector<std::string> stack;
  canon::FoldStack fold;
  void push(int32_t begin, int32_t end, std::string shape) {
    for (int32_t joins = fold.joins_before(begin); joins > 0; --joins) join();
    stack.push_back(std::move(shape));
    fold.push(begin, end);
  }
  void join() {
    const std::string top = stack.back();
    stack.pop_back();
    stack.back() = "(" + stack.back() + " " + top + ")";
    fold.joined();
  }
  std::string finish() {
    while (fold.depth > 1) join();
    return stack.empty() ? "" : stack[0];
  }
};

std::string whole(int32_t first, int32_t last) {
  Shapes shapes;
  for (int32_t c = first; c < last; ++c) shapes.push(c, c + 1, std::to_string(c));
  return shapes.finish();
}

TEST(Canon, NodesOfAnyCutFoldToTheSameTree) {
  for (int32_t first = 0; first < 20; ++first) {
    for (int32_t last = first + 1; last < 40; ++last) {
      const std::string expected = whole(first, last);
      for (int32_t a = first; a <= last; ++a) {
        for (int32_t b = a; b <= last; ++b) {
          Shapes shapes;
          const int32_t cuts[4] = {first, a, b, last};
          for (int i = 0; i < 3; ++i) {
            int32_t nodes = 0;
            for (int32_t at = cuts[i]; at < cuts[i + 1]; ++nodes) {
              const int32_t end = canon::node_end(at, cuts[i + 1], first, last);
              shapes.push(at, end, whole(at, end));
              at = end;
            }
            const int32_t ends = (cuts[i] > first) + (cuts[i + 1] < last);
            ASSERT_LE(nodes, std::max(1, ends * canon::max_nodes_per_cut(last))) << first << " " << last << " " << a << " " << b;
          }
          ASSERT_EQ(shapes.finish(), expected) << first << " " << a << " " << b << " " << last;
        }
      }
    }
  }
}

TEST(Canon, ChunksThatARowDoesntSeeChangeNothing) {
  // A row that sees chunks [first, last) among others: dropping the empty leaves leaves its own tree.
  for (int32_t first = 0; first < 17; ++first) {
    for (int32_t last = first + 1; last < 34; ++last) {
      Shapes shapes;
      for (int32_t c = 0; c < 40; ++c) shapes.push(c, c + 1, c >= first && c < last ? std::to_string(c) : "");
      struct Prune {
        std::string text;
        size_t at = 0;
        std::string parse() {
          if (text[at] != '(') {
            std::string leaf;
            while (at < text.size() && text[at] != ' ' && text[at] != ')') leaf += text[at++];
            return leaf;
          }
          ++at;
          std::string a = parse();
          ++at;
          std::string b = parse();
          ++at;
          return a.empty() ? b : b.empty() ? a : "(" + a + " " + b + ")";
        }
      } prune{shapes.finish()};
      ASSERT_EQ(prune.parse(), whole(first, last)) << first << " " << last;
    }
  }
}

TEST(Schedule, SearchAndDivision) {
  const int64_t prefix[] = {0, 0, 5, 5, 9};
  EXPECT_EQ(search_prefix(prefix, 4, 0), 1);
  EXPECT_EQ(search_prefix(prefix, 4, 4), 1);
  EXPECT_EQ(search_prefix(prefix, 4, 5), 3);
  for (int64_t total : {1, 7, 100}) {
    for (int64_t share : {1, 3, 150}) {
      for (int64_t c = 0; c < total; ++c) {
        const int32_t w = worker_of(share, c);
        EXPECT_LE(share_begin(total, share, w), c);
        EXPECT_GT(share_begin(total, share, w + 1), c);
      }
    }
  }
}

}  // namespace
