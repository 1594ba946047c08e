// Builds an attention call out of requests: paged or ragged tensors with poisoned padding, tables and lengths in any
// form, one level or a shared prefix; runs it through the C ABI; and states the same problem for the reference.
// What a query, key or value holds depends on its owner and position only, so that scenes can be compared bit by bit.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "ops/reference/attention.hpp"
#include "ops/tensors.hpp"

namespace testing_ops {

struct Request {
  int id = 0;
  int qo_len = 1, kv_len = 1;     // kv_len: all keys, with the prefix
  int prefix_id = -1, prefix_len = 0;  // keys shared with the neighbours of the same prefix_id
  int first_position = -1;        // of the queries; -1: kv_len - qo_len
};

struct SceneOptions {
  int dtype = FULMEN_F32, o_dtype = -1;
  int qo_heads = 2, kv_heads = 1, qk_dim = 16, vo_dim = 16;
  int page_size = 16;             // 0: ragged
  bool causal = true;
  int window_left = -1;
  float scale = 0.0f;
  float soft_cap = 0.0f;
  bool alibi = false, sinks = false, rope = false, rope_interleaved = false, custom_mask = false, no_softmax = false;
  int rotary_dim = 0;
  bool share_prefix = false;      // a level of its own for prefixes; else every request has all its keys
  bool csr = false, index_i64 = false, row_index = false, pages_and_last = false, hnd = false, odd_strides = false;
  bool own_v_table = false;
  bool lse = true;
  int num_sms = 0;
  double k_scale = 1.0;
};

// Roughly normal, from a hash of where it is.
inline double content(int kind, int owner, int position, int head, int dim) {
  uint64_t h = 0x9e3779b97f4a7c15ull * (static_cast<uint64_t>(kind) + 1);
  for (int x : {owner, position, head, dim}) {
    h ^= static_cast<uint64_t>(static_cast<uint32_t>(x)) + 0x9e3779b97f4a7c15ull + (h << 6) + (h >> 2);
    h *= 0xbf58476d1ce4e5b9ull;
    h ^= h >> 29;
  }
  double sum = 0.0;
  for (int i = 0; i < 4; ++i) sum += static_cast<double>((h >> (16 * i)) & 0xffff) / 65535.0 - 0.5;
  return sum * 1.7;
}

class Scene {
 public:
  enum { kQuery = 0, kKey = 1, kValue = 2 };
  SceneOptions options;
  std::vector<Request> requests;
  Tensor q, k, v, o, lse;

  Scene(SceneOptions given, std::vector<Request> list) : options(given), requests(std::move(list)) {
    if (options.o_dtype < 0) options.o_dtype = options.dtype;
    build();
  }

  uint32_t features() const {
    return (options.soft_cap > 0 ? FULMEN_ATTENTION_SOFT_CAP : 0) | (options.alibi ? FULMEN_ATTENTION_ALIBI : 0) |
           (options.sinks ? FULMEN_ATTENTION_SINKS : 0) | (options.rope ? FULMEN_ATTENTION_ROPE : 0) |
           (options.custom_mask ? FULMEN_ATTENTION_CUSTOM_MASK : 0) |
           (options.no_softmax ? FULMEN_ATTENTION_NO_SOFTMAX : 0);
  }
  bool mask_bit(int request, int row, int key) const {
    return content(7, requests[static_cast<size_t>(request)].id, row, key, 0) > -0.6;
  }
  double slope(int head) const { return 0.02 * (head + 1); }
  double sink(int head) const { return 0.5 * head - 0.3; }

  fulmen_attention_spec spec() const {
    FULMEN_INIT(fulmen_attention_spec, s);
    s.q_dtype = s.kv_dtype = options.dtype;
    s.o_dtype = options.o_dtype;
    s.head_dim_qk = options.qk_dim;
    s.head_dim_vo = options.vo_dim;
    s.features = features();
    s.batch_invariant = 1;
    return s;
  }
  fulmen_attention_limits limits() const {
    FULMEN_INIT(fulmen_attention_limits, l);
    l.max_requests = std::max<int64_t>(1, static_cast<int64_t>(requests.size()));
    l.max_rows = std::max(1, num_rows());
    l.max_kv_len = 1;
    for (const Request& r : requests) l.max_kv_len = std::max<int64_t>(l.max_kv_len, r.kv_len);
    l.num_levels = num_levels();
    l.num_groups = 1;
    l.num_sms = options.num_sms;
    l.groups[0].struct_size = sizeof(fulmen_attention_group);
    l.groups[0].num_qo_heads = options.qo_heads;
    l.groups[0].num_kv_heads = options.kv_heads;
    l.groups[0].causal = options.causal;
    l.groups[0].window_left = options.window_left;
    return l;
  }
  int num_levels() const { return options.share_prefix ? 2 : 1; }
  int num_rows() const {
    int n = 0;
    for (const Request& r : requests) n += r.qo_len;
    return n;
  }

  fulmen_attention_lengths lengths() {
    FULMEN_INIT(fulmen_attention_lengths, l);
    l.num_levels = num_levels();
    l.page_size = std::max(1, options.page_size);
    for (int level = 0; level < num_levels(); ++level) {
      Level& from = levels_[static_cast<size_t>(level)];
      l.levels[level].struct_size = sizeof(fulmen_attention_level);
      l.levels[level].qo_indptr = from.qo_indptr.view();
      if (options.pages_and_last && options.page_size > 0) {
        l.levels[level].kv_page_indptr = from.page_indptr.view();
        l.levels[level].last_page_len = from.last_page_len.view();
      } else {
        l.levels[level].kv_len = from.kv_len.view();
      }
    }
    return l;
  }
  fulmen_attention_tensors tensors() {
    FULMEN_INIT(fulmen_attention_tensors, t);
    t.page_size = options.page_size;
    t.q = q.view();
    t.k = k.view();
    t.v = v.view();
    t.o = o.view();
    if (options.lse) t.lse = lse.view();
    for (int level = 0; level < num_levels(); ++level) {
      Level& from = levels_[static_cast<size_t>(level)];
      const auto fill = [&](fulmen_kv_table& to, Tensor& table) {
        to.struct_size = sizeof(fulmen_kv_table);
        if (options.page_size == 0) {
          to.indptr = from.row_start.view();
          return;
        }
        to.table = table.view();
        if (options.csr) to.indptr = from.page_indptr.view();
        if (options.row_index) to.row_index = from.row_index.view();
      };
      fill(t.kv[level], from.table);
      if (options.own_v_table) fill(t.v_table[level], from.v_table);
    }
    t.sm_scale = options.scale;
    t.logits_soft_cap = options.soft_cap;
    if (options.alibi) t.alibi_slopes = slopes_.view();
    if (options.sinks) t.sinks = sinks_.view();
    if (options.custom_mask) t.mask = mask_.view(), t.mask_indptr = mask_indptr_.view();
    if (options.rope) {
      t.rope.rotary_dim = options.rotary_dim;
      t.rope.interleaved = options.rope_interleaved;
    }
    return t;
  }

  // Runs on a context; plan and scratch are poisoned first. Returns the plan's status record.
  fulmen_status_record run(fulmen_context* context) {
    fulmen_status_record record{};
    const auto s = spec();
    const auto l = limits();
    fulmen_attention* attention = nullptr;
    EXPECT_FULMEN_OK(fulmen_attention_create(context, &s, &l, &attention));
    if (!attention) return record;
    FULMEN_INIT(fulmen_attention_sizes, sizes);
    EXPECT_FULMEN_OK(fulmen_attention_sizes_of(attention, &sizes));
    EXPECT_EQ(sizes.plan_bytes % 256, 0u);
    EXPECT_EQ(sizes.scratch_bytes % 256, 0u);
    Memory plan(sizes.plan_bytes), scratch(sizes.scratch_bytes);
    EXPECT_FULMEN_OK(fulmen_scratch_init(context, scratch.data(), sizes.scratch_bytes, nullptr));
    const auto len = lengths();
    EXPECT_FULMEN_OK(fulmen_attention_plan(attention, &len, plan.data(), nullptr));
    const auto t = tensors();
    EXPECT_FULMEN_OK(fulmen_attention_run(attention, &t, plan.data(), scratch.data(), nullptr));
    std::memcpy(&record, plan.data(), sizeof record);
    plan.expect_guard("plan");
    scratch.expect_guard("scratch");
    o.expect_guards("o");
    if (options.lse) lse.expect_guards("lse");
    fulmen_attention_destroy(attention);
    return record;
  }

  reference::AttentionProblem problem(int index) {
    const Request& r = requests[static_cast<size_t>(index)];
    reference::AttentionProblem p;
    p.qo_len = r.qo_len, p.kv_len = r.kv_len;
    p.qo_heads = options.qo_heads, p.kv_heads = options.kv_heads;
    p.qk_dim = options.qk_dim, p.vo_dim = options.vo_dim;
    p.scale = options.scale != 0.0f ? options.scale : 1.0 / std::sqrt(static_cast<double>(options.qk_dim));
    p.causal = options.causal;
    p.window_left = options.window_left;
    p.soft_cap = options.soft_cap;
    p.softmax = !options.no_softmax;
    for (int h = 0; h < options.qo_heads; ++h) {
      if (options.alibi) p.slopes.push_back(static_cast<float>(slope(h)));
      if (options.sinks) p.sinks.push_back(static_cast<float>(sink(h)));
    }
    if (options.custom_mask) p.mask = [this, index](int row, int key) { return mask_bit(index, row, key); };
    const auto rounded = [&](int kind, int owner, int pos, int head, int dim) {
      return round_to(options.dtype, value(kind, owner, pos, head, dim));
    };
    for (int i = 0; i < r.qo_len; ++i) {
      for (int h = 0; h < options.qo_heads; ++h) {
        for (int d = 0; d < options.qk_dim; ++d) p.q.push_back(rounded(kQuery, r.id, query_position(r, i), h, d));
        if (options.rope) rotate(&p.q[p.q.size() - static_cast<size_t>(options.qk_dim)], r.kv_len - r.qo_len + i);
      }
    }
    for (int j = 0; j < r.kv_len; ++j) {
      for (int h = 0; h < options.kv_heads; ++h) {
        for (int d = 0; d < options.qk_dim; ++d) p.k.push_back(rounded(kKey, owner(r, j), j, h, d));
        if (options.rope) rotate(&p.k[p.k.size() - static_cast<size_t>(options.qk_dim)], j);
        for (int d = 0; d < options.vo_dim; ++d) p.v.push_back(rounded(kValue, owner(r, j), j, h, d));
      }
    }
    return p;
  }

  // Error against fp64 at most twice that of the plain formula in the same precision. What that one errs is a matter of
  // luck where few rows decide: one evaluation in some thousands is less than half as far off as another that adds in a
  // different order. So it is evaluated in several orders, and what counts is the farthest value of each element.
  void expect_close_to_reference(const std::string& what) {
    std::vector<double> exact, exact_lse;
    std::vector<float> plain, plain_lse;
    for (int i = 0; i < static_cast<int>(requests.size()); ++i) {
      const auto p = problem(i);
      const auto r = reference::attention(p);
      exact.insert(exact.end(), r.o.begin(), r.o.end());
      exact_lse.insert(exact_lse.end(), r.lse.begin(), r.lse.end());
      std::vector<float> o_far, lse_far;
      for (int order = 0; order < kOrders; ++order) {
        std::vector<float> o_now, lse_now;
        plain_attention(p, order, o_now, lse_now);
        keep_farthest(r.o, o_now, o_far);
        keep_farthest(r.lse, lse_now, lse_far);
      }
      plain.insert(plain.end(), o_far.begin(), o_far.end());
      plain_lse.insert(plain_lse.end(), lse_far.begin(), lse_far.end());
    }
    expect_close(o, exact, plain, what + ": o");
    if (!options.lse || options.no_softmax) return;
    expect_close_lse(exact_lse, plain_lse, what + ": lse");
  }

  // The raw bytes of request i's output and LSE, rows [from, to).
  std::vector<unsigned char> bits(int index, int from = 0, int to = -1) {
    int64_t row = 0;
    for (int i = 0; i < index; ++i) row += requests[static_cast<size_t>(i)].qo_len;
    if (to < 0) to = requests[static_cast<size_t>(index)].qo_len;
    std::vector<unsigned char> out;
    for (int64_t i = row + from; i < row + to; ++i) {
      for (int64_t h = 0; h < options.qo_heads; ++h) {
        const auto append = [&](Tensor& t, int64_t element) {
          const auto* p = static_cast<const unsigned char*>(t.at(element));
          out.insert(out.end(), p, p + size_of(t.dtype()));
        };
        for (int64_t d = 0; d < options.vo_dim; ++d) append(o, (i * options.qo_heads + h) * options.vo_dim + d);
        if (options.lse) append(lse, i * options.qo_heads + h);
      }
    }
    return out;
  }

  // Entry `page` of request (or level segment) i's table; for tests that damage it.
  void set_page(int level, int segment, int page, int64_t id) {
    Level& l = levels_[static_cast<size_t>(level)];
    put(l.table, l.table_at(segment, page, options), id);
  }
  Tensor& qo_indptr(int level) { return levels_[static_cast<size_t>(level)].qo_indptr; }
  Tensor& mask_indptr() { return mask_indptr_; }
  Tensor& kv_len(int level) { return levels_[static_cast<size_t>(level)].kv_len; }
  void put(Tensor& t, int64_t i, int64_t x) {
    if (options.index_i64) {
      t.set_integer<int64_t>(i, x);
    } else {
      t.set_integer<int32_t>(i, static_cast<int32_t>(x));
    }
  }

 private:
  struct Level {
    Tensor qo_indptr, kv_len, page_indptr, last_page_len, table, v_table, row_index, row_start;
    std::vector<int> first_page, rows;
    int width = 0;
    int64_t table_at(int segment, int page, const SceneOptions& o) const {
      return o.csr ? first_page[static_cast<size_t>(segment)] + page
                   : static_cast<int64_t>(rows[static_cast<size_t>(segment)]) * width + page;
    }
  };

  struct Segment {
    int rows, owner_request, begin, end;  // keys [begin, end) of that request
  };

  // Memory with a guard behind it, aligned and poisoned.
  class Memory {
   public:
    explicit Memory(uint64_t bytes) : bytes_(bytes), all_(bytes + 512, 0xff) {}
    unsigned char* data() {
      const auto address = reinterpret_cast<uintptr_t>(all_.data());
      return all_.data() + (256 - address % 256) % 256;
    }
    void expect_guard(const char* what) {
      for (unsigned char* p = data() + bytes_; p < all_.data() + all_.size(); ++p) {
        ASSERT_EQ(*p, 0xff) << what << ": written past its size";
      }
    }

   private:
    uint64_t bytes_;
    std::vector<unsigned char> all_;
  };

  int owner(const Request& r, int position) const { return position < r.prefix_len ? 1000000 + r.prefix_id : r.id; }
  int query_position(const Request& r, int row) const {
    return (r.first_position >= 0 ? r.first_position : r.kv_len - r.qo_len) + row;
  }
  double value(int kind, int who, int position, int head, int dim) const {
    return content(kind, who, position, head, dim) * (kind == kKey ? options.k_scale : 1.0);
  }
  Tensor index_tensor(std::vector<int64_t> shape, std::vector<int64_t> strides = {}) const {
    return Tensor(options.index_i64 ? FULMEN_I64 : FULMEN_I32, std::move(shape), std::move(strides));
  }

  void build() {
    const int rows = num_rows(), extra = options.odd_strides ? 5 : 0;
    const auto strided = [&](int dtype, int64_t heads, int64_t dim) {
      return Tensor(dtype, {rows, heads, dim}, {heads * (dim + extra) + extra, dim + extra, 1});
    };
    q = strided(options.dtype, options.qo_heads, options.qk_dim);
    o = strided(options.o_dtype, options.qo_heads, options.vo_dim);
    lse = Tensor(FULMEN_F32, {rows, options.qo_heads});
    int64_t i = 0;
    for (const Request& r : requests) {
      for (int row = 0; row < r.qo_len; ++row) {
        for (int h = 0; h < options.qo_heads; ++h) {
          for (int d = 0; d < options.qk_dim; ++d) q.set(i++, value(kQuery, r.id, query_position(r, row), h, d));
        }
      }
    }
    // Segments of each level.
    std::vector<std::vector<Segment>> segments(static_cast<size_t>(num_levels()));
    for (int r = 0; r < static_cast<int>(requests.size()); ++r) {
      const Request& request = requests[static_cast<size_t>(r)];
      int begin = 0;
      if (options.share_prefix) {
        auto& prefixes = segments[0];
        const bool joins = r > 0 && request.prefix_id >= 0 &&
                           requests[static_cast<size_t>(r) - 1].prefix_id == request.prefix_id;
        if (joins) {
          prefixes.back().rows += request.qo_len;
        } else {
          prefixes.push_back({request.qo_len, r, 0, request.prefix_len});
        }
        begin = request.prefix_len;
      }
      segments.back().push_back({request.qo_len, r, begin, request.kv_len});
    }
    // Pages of all segments, dealt out in random order from one pool with spare pages.
    const int page = std::max(1, options.page_size);
    int used = 0;
    for (const auto& level : segments) {
      for (const Segment& s : level) used += (s.end - s.begin + page - 1) / page;
    }
    const int pool = used + 3;
    std::vector<int> k_ids(static_cast<size_t>(pool)), v_ids;
    std::iota(k_ids.begin(), k_ids.end(), 0);
    std::mt19937 random(12345);
    if (options.page_size > 0) std::shuffle(k_ids.begin(), k_ids.end(), random);
    v_ids = k_ids;
    if (options.own_v_table) std::shuffle(v_ids.begin(), v_ids.end(), random);
    const auto cache = [&](int64_t dim) {
      const int64_t h = options.kv_heads, row = dim + extra;
      if (options.page_size == 0) return Tensor(options.dtype, {pool, h, dim}, {h * row + extra, row, 1});
      if (options.hnd) return Tensor(options.dtype, {pool, page, h, dim}, {h * page * row + extra, row, page * row, 1});
      return Tensor(options.dtype, {pool, page, h, dim}, {page * h * row + extra, h * row, row, 1});
    };
    k = cache(options.qk_dim);
    v = cache(options.vo_dim);

    int next = 0;
    levels_.resize(segments.size());
    for (size_t level = 0; level < segments.size(); ++level) {
      const auto& list = segments[level];
      Level& out = levels_[level];
      const int64_t n = static_cast<int64_t>(list.size());
      out.width = 1;
      int total = 0;
      for (const Segment& s : list) {
        const int pages = (s.end - s.begin + page - 1) / page;
        out.width = std::max(out.width, pages);
        out.first_page.push_back(total);
        total += pages;
      }
      out.qo_indptr = index_tensor({n + 1});
      out.kv_len = index_tensor({n});
      out.page_indptr = index_tensor({n + 1});
      out.last_page_len = index_tensor({n});
      out.row_index = index_tensor({n});
      out.row_start = index_tensor({n + 1});
      const int64_t table_rows = options.row_index ? n + 2 : n;
      const auto table = [&] {
        return options.csr ? index_tensor({total + 2})
                           : index_tensor({table_rows, out.width}, {out.width + extra, 1});
      };
      out.table = table();
      out.v_table = table();
      int row = 0, index = 0;
      put(out.row_start, 0, next);
      for (const Segment& s : list) {
        const int keys = s.end - s.begin, pages = (keys + page - 1) / page;
        out.rows.push_back(options.row_index ? static_cast<int>(n + 1 - index) : index);
        put(out.qo_indptr, index, row);
        row += s.rows;
        put(out.kv_len, index, keys);
        put(out.page_indptr, index, out.first_page[static_cast<size_t>(index)]);
        put(out.last_page_len, index, pages ? keys - (pages - 1) * page : 0);
        put(out.row_index, index, out.rows.back());
        const Request& r = requests[static_cast<size_t>(s.owner_request)];
        for (int j = 0; j < pages; ++j) {
          const int k_id = k_ids[static_cast<size_t>(next)], v_id = v_ids[static_cast<size_t>(next)];
          ++next;
          put(out.table, out.table_at(index, j, options), k_id);
          put(out.v_table, out.table_at(index, j, options), v_id);
          for (int t = 0; t < page && j * page + t < keys; ++t) {
            const int position = s.begin + j * page + t;
            for (int h = 0; h < options.kv_heads; ++h) {
              const int64_t k_at = ((static_cast<int64_t>(k_id) * page + t) * options.kv_heads + h) * options.qk_dim;
              const int64_t v_at = ((static_cast<int64_t>(v_id) * page + t) * options.kv_heads + h) * options.vo_dim;
              for (int d = 0; d < options.qk_dim; ++d) k.set(k_at + d, value(kKey, owner(r, position), position, h, d));
              for (int d = 0; d < options.vo_dim; ++d) v.set(v_at + d, value(kValue, owner(r, position), position, h, d));
            }
          }
        }
        put(out.row_start, index + 1, next);
        ++index;
      }
      put(out.qo_indptr, n, row);
      put(out.page_indptr, n, total);
    }
    if (options.alibi || options.sinks) {
      slopes_ = Tensor(FULMEN_F32, {options.qo_heads});
      sinks_ = Tensor(FULMEN_F32, {options.qo_heads});
      for (int h = 0; h < options.qo_heads; ++h) slopes_.set(h, slope(h)), sinks_.set(h, sink(h));
    }
    if (options.custom_mask) build_mask();
  }

  void build_mask() {
    std::vector<uint8_t> bytes;
    mask_indptr_ = index_tensor({static_cast<int64_t>(requests.size()) + 1});
    for (int r = 0; r < static_cast<int>(requests.size()); ++r) {
      const Request& request = requests[static_cast<size_t>(r)];
      put(mask_indptr_, r, static_cast<int64_t>(bytes.size()));
      const size_t start = bytes.size();
      bytes.resize(start + (static_cast<size_t>(request.qo_len) * static_cast<size_t>(request.kv_len) + 7) / 8);
      for (int i = 0; i < request.qo_len; ++i) {
        for (int j = 0; j < request.kv_len; ++j) {
          const size_t bit = static_cast<size_t>(i) * static_cast<size_t>(request.kv_len) + static_cast<size_t>(j);
          if (mask_bit(r, i, j)) bytes[start + bit / 8] |= static_cast<uint8_t>(1u << (bit % 8));
        }
      }
    }
    put(mask_indptr_, static_cast<int64_t>(requests.size()), static_cast<int64_t>(bytes.size()));
    mask_ = Tensor(FULMEN_U8, {std::max<int64_t>(1, static_cast<int64_t>(bytes.size()))});
    for (size_t i = 0; i < bytes.size(); ++i) mask_.set_integer<uint8_t>(static_cast<int64_t>(i), bytes[i]);
  }

  void rotate(double* row, int position) const {
    const int rotary = options.rotary_dim ? options.rotary_dim : options.qk_dim;
    for (int i = 0; i < rotary / 2; ++i) {
      const double angle = position * std::pow(10000.0, -2.0 * i / rotary);
      double& a = row[options.rope_interleaved ? 2 * i : i];
      double& b = row[options.rope_interleaved ? 2 * i + 1 : i + rotary / 2];
      const double x = a * std::cos(angle) - b * std::sin(angle);
      b = b * std::cos(angle) + a * std::sin(angle);
      a = x;
    }
  }

  // Orders that sums may have: rising, falling, even indices before odd ones, and that backwards.
  static constexpr int kOrders = 4;
  static int in_order(int order, int i, int count) {
    if (order % 2 == 1) i = count - 1 - i;
    const int even = (count + 1) / 2;
    return order < 2 ? i : i < even ? 2 * i : 2 * (i - even) + 1;
  }
  static void keep_farthest(const std::vector<double>& exact, const std::vector<float>& now, std::vector<float>& farthest) {
    if (farthest.empty()) farthest = now;
    for (size_t i = 0; i < exact.size(); ++i) {
      if (std::fabs(now[i] - exact[i]) > std::fabs(farthest[i] - exact[i])) farthest[i] = now[i];
    }
  }

  // The formula in fp32, weights rounded to the dtype as a plain implementation feeds them to its second product.
  void plain_attention(const reference::AttentionProblem& p, int order, std::vector<float>& o_out,
                       std::vector<float>& lse_out) {
    const int group = p.qo_heads / p.kv_heads;
    for (int row = 0; row < p.qo_len; ++row) {
      for (int head = 0; head < p.qo_heads; ++head) {
        std::vector<float> s(static_cast<size_t>(p.kv_len), -std::numeric_limits<float>::infinity());
        float top = -std::numeric_limits<float>::infinity();
        for (int key = 0; key < p.kv_len; ++key) {
          if (!reference::visible(p, row, key)) continue;
          float x = 0.0f;
          for (int i = 0; i < p.qk_dim; ++i) {
            const int d = in_order(order, i, p.qk_dim);
            x += static_cast<float>(p.q[(static_cast<size_t>(row) * p.qo_heads + head) * p.qk_dim + d]) *
                 static_cast<float>(p.k[(static_cast<size_t>(key) * p.kv_heads + head / group) * p.qk_dim + d]);
          }
          x *= static_cast<float>(p.scale);
          if (p.soft_cap > 0.0) x = static_cast<float>(p.soft_cap) * std::tanh(x / static_cast<float>(p.soft_cap));
          if (!p.slopes.empty()) x += static_cast<float>(p.slopes[static_cast<size_t>(head)]) * static_cast<float>(key - (p.kv_len - p.qo_len + row));
          s[static_cast<size_t>(key)] = x;
          top = std::max(top, x);
        }
        std::vector<float> acc(static_cast<size_t>(p.vo_dim), 0.0f);
        if (top == -std::numeric_limits<float>::infinity()) {
          o_out.insert(o_out.end(), acc.begin(), acc.end());
          lse_out.push_back(top);
          continue;
        }
        float sum = 0.0f;
        if (p.softmax && !p.sinks.empty()) {
          top = std::max(top, static_cast<float>(p.sinks[static_cast<size_t>(head)]));
          sum = std::exp(static_cast<float>(p.sinks[static_cast<size_t>(head)]) - top);
        }
        for (int i = 0; i < p.kv_len; ++i) {
          const int key = in_order(order, i, p.kv_len);
          if (!reference::visible(p, row, key)) continue;
          const float w = p.softmax ? std::exp(s[static_cast<size_t>(key)] - top) : s[static_cast<size_t>(key)];
          sum += w;
          const float rounded = static_cast<float>(round_to(options.dtype, w));
          for (int d = 0; d < p.vo_dim; ++d) {
            acc[static_cast<size_t>(d)] += rounded * static_cast<float>(p.v[(static_cast<size_t>(key) * p.kv_heads + head / group) * p.vo_dim + d]);
          }
        }
        for (float x : acc) o_out.push_back(p.softmax ? x / sum : x);
        lse_out.push_back(top + std::log(sum));
      }
    }
  }

  void expect_close_lse(const std::vector<double>& exact, const std::vector<float>& plain, const std::string& what) {
    double worst_plain = 0.0, largest = 1.0, worst = 0.0;
    for (size_t i = 0; i < exact.size(); ++i) {
      const double got = lse.get(static_cast<int64_t>(i));
      if (!std::isfinite(exact[i])) {
        ASSERT_EQ(got, exact[i]) << what << ": element " << i;
        continue;
      }
      ASSERT_TRUE(std::isfinite(got)) << what << ": element " << i << ": got " << got << ", exact " << exact[i];
      worst_plain = std::max(worst_plain, std::fabs(plain[i] - exact[i]));
      largest = std::max(largest, std::fabs(exact[i]));
      worst = std::max(worst, std::fabs(got - exact[i]));
    }
    EXPECT_LE(worst, 2.0 * worst_plain + 3e-7 * largest) << what;
  }

  std::vector<Level> levels_;
  Tensor slopes_, sinks_, mask_, mask_indptr_;
};

}  // namespace testing_ops
