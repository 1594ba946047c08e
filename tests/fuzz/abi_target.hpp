#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fulmen/fulmen.h"

namespace fulmen::fuzz {

/// Where mutations come from: a seeded generator, or a fuzzer's bytes (zeros at their end).
using Source = std::function<uint32_t()>;

[[noreturn]] inline void broken(const std::string& what) {
  std::fprintf(stderr, "abi: %s\n", what.c_str());
  std::abort();
}

/// One tensor's memory: its elements in the middle, room for other views of it around, guards at the ends.
struct Buffer {
  static constexpr size_t kGuard = 64;
  std::vector<uint8_t> bytes;
  bool is_index = false;
  int32_t index_dtype = 0;
  size_t first = 0, count = 0;  // of the elements
  uint8_t* data() { return bytes.data() + first; }
};

struct Place {  // a tensor of the call
  std::string name;
  fulmen_tensor* tensor;
  bool output, required;
};

inline int64_t size_of_dtype(int32_t dtype) {
  static constexpr int64_t kSizes[] = {4, 2, 2, 1, 1, 4, 8, 1, 4, 8};
  return dtype >= 0 && dtype < 10 ? kSizes[dtype] : 8;
}

/// A call of one op that is valid until it is mutated.
class Call {
 public:
  using Run = std::function<fulmen_status()>;
  std::string op;
  std::vector<Place> places;
  std::vector<const fulmen_tensor*> also_written;  // outputs that aren't among the places
  std::vector<std::unique_ptr<Buffer>> buffers;
  uint8_t* args = nullptr;  // the struct that is mutated
  size_t args_size = 0;
  std::vector<size_t> pointers;  // offsets in it of pointers that aren't tensors' data: left alone
  Run run;

  /// Room behind the struct: a larger struct_size makes the library read there.
  template <class T>
  T* make_args() {
    storage_.assign(sizeof(T) * 6 + 8192, 0);
    args = storage_.data();
    args_size = sizeof(T);
    auto* typed = new (args) T{};
    typed->struct_size = sizeof(T);
    return typed;
  }
  template <class T>
  T* make_other() {
    others_.push_back(std::vector<uint8_t>(sizeof(T) * 6 + 8192, 0));
    auto* typed = new (others_.back().data()) T{};
    typed->struct_size = sizeof(T);
    return typed;
  }

  void put(const std::string& name, fulmen_tensor& to, int32_t dtype, std::vector<int64_t> shape, bool output = false,
           bool required = true) {
    auto buffer = std::make_unique<Buffer>();
    to = {};
    to.dtype = dtype;
    int64_t n = 1;
    for (size_t i = shape.size(); i-- > 0;) to.shape[i] = shape[i], to.stride[i] = n, n *= shape[i];
    to.ndim = static_cast<int32_t>(shape.size());
    const size_t need = static_cast<size_t>(n * size_of_dtype(dtype));
    buffer->count = static_cast<size_t>(n);
    buffer->first = Buffer::kGuard + (need + 63) / 64 * 64;
    buffer->bytes.resize(buffer->first + 2 * need + 2 * Buffer::kGuard + 64);
    // vector's memory is aligned to 16 bytes, which is all that any dtype asks for
    for (size_t i = 0; i < buffer->bytes.size(); ++i) buffer->bytes[i] = static_cast<uint8_t>(0x31 + i % 5);
    to.data = buffer->data();
    buffers.push_back(std::move(buffer));
    places.push_back({name, &to, output, required});
  }
  void put_index(const std::string& name, fulmen_tensor& to, int32_t dtype, const std::vector<int64_t>& values,
                 std::vector<int64_t> shape = {}, bool required = true) {
    if (shape.empty()) shape = {static_cast<int64_t>(values.size())};
    put(name, to, dtype, shape, false, required);
    Buffer& buffer = *buffers.back();
    buffer.is_index = true;
    buffer.index_dtype = dtype;
    for (size_t i = 0; i < values.size(); ++i) set_index(buffer, i, values[i]);
  }
  static void set_index(Buffer& buffer, size_t i, int64_t value) {
    std::memcpy(buffer.data() + i * static_cast<size_t>(size_of_dtype(buffer.index_dtype)), &value,
                static_cast<size_t>(size_of_dtype(buffer.index_dtype)));
  }

  Buffer* buffer_of(const void* data) {
    const auto* p = static_cast<const uint8_t*>(data);
    for (auto& b : buffers) {
      if (p >= b->bytes.data() && p < b->bytes.data() + b->bytes.size()) return b.get();
    }
    return nullptr;
  }

  enum class Fit { inside, beyond, absurd };
  /// Do the elements that the tensor names lie in its buffer? What isn't there can't be checked by the library: such
  /// calls are left out, unless the numbers are absurd and must be refused.
  Fit fit(const fulmen_tensor& t) {
    if (t.data == nullptr || t.ndim < 1 || t.ndim > FULMEN_MAX_DIMS) return Fit::inside;  // refused, or absent
    __int128 low = 0, high = 0, n = 1;
    for (int i = 0; i < t.ndim; ++i) {
      if (t.shape[i] < 0) return Fit::inside;  // refused
      n *= t.shape[i] == 0 ? 1 : t.shape[i];
      if (n > (__int128{1} << 56)) return Fit::absurd;
    }
    for (int i = 0; i < t.ndim; ++i) {
      if (t.shape[i] == 0) return Fit::inside;  // no elements
    }
    for (int i = 0; i < t.ndim; ++i) {
      const __int128 reach = static_cast<__int128>(t.shape[i] - 1) * t.stride[i] * size_of_dtype(t.dtype);
      (reach < 0 ? low : high) += reach;
    }
    high += size_of_dtype(t.dtype);
    if (low < -(__int128{1} << 58) || high > (__int128{1} << 58)) return Fit::absurd;
    Buffer* buffer = buffer_of(t.data);
    if (buffer == nullptr) return Fit::beyond;
    const auto at = static_cast<__int128>(static_cast<uint8_t*>(t.data) - buffer->bytes.data());
    const auto size = static_cast<__int128>(buffer->bytes.size());
    return at + low >= Buffer::kGuard && at + high <= size - Buffer::kGuard ? Fit::inside : Fit::beyond;
  }

  /// Runs it and checks what must hold whatever the numbers are. `refused`: it must not succeed.
  fulmen_status checked_run(bool refused = false) {
    std::vector<std::vector<uint8_t>> before;
    std::vector<const Buffer*> written;
    for (const Place& p : places) {
      if (p.output && p.tensor->data) written.push_back(buffer_of(p.tensor->data));
    }
    for (const fulmen_tensor* t : also_written) written.push_back(buffer_of(t->data));
    for (const auto& b : buffers) before.push_back(b->bytes);
    const fulmen_status status = run();
    const std::string text = fulmen_last_error();
    if (status == FULMEN_OK) {
      if (refused) broken(op + ": absurd sizes were accepted");
    } else {
      if (status != FULMEN_INVALID_ARGUMENT && status != FULMEN_UNSUPPORTED) {
        broken(op + ": status " + fulmen_status_name(status) + ": " + text);
      }
      if (text.rfind(op, 0) != 0 || text.find('\n') != std::string::npos || text.size() < 20 || text.size() > 400) {
        broken(op + ": not one clear line: " + text);
      }
    }
    for (size_t i = 0; i < buffers.size(); ++i) {
      const bool may_change = status == FULMEN_OK && std::find(written.begin(), written.end(), buffers[i].get()) != written.end();
      const auto &now = buffers[i]->bytes, &was = before[i];
      const size_t from = may_change ? Buffer::kGuard : was.size();
      const auto same = [&](size_t begin, size_t end) { return std::equal(now.begin() + static_cast<long>(begin), now.begin() + static_cast<long>(end), was.begin() + static_cast<long>(begin)); };
      if (!same(0, from) || !same(was.size() - Buffer::kGuard, was.size())) broken(op + ": memory changed that isn't an output's: " + text);
    }
    return status;
  }

  /// Changes one thing.
  void mutate(const Source& next) {
    static constexpr int64_t kExtreme[] = {0, 1, -1, 2, 3, 5, 7, 16, 1 << 20, 0x7fffffff, 0x80000000, int64_t{1} << 40, int64_t{1} << 62, INT64_MAX, INT64_MIN, -2};
    const auto extreme = [&] { return kExtreme[next() % std::size(kExtreme)]; };
    Place& place = places[next() % places.size()];
    fulmen_tensor& t = *place.tensor;
    switch (next() % 14) {
      case 0:
      case 1: {  // any byte of the struct but a pointer's
        size_t at = next() % args_size;
        if (at < sizeof(size_t)) at = sizeof(size_t) % args_size;
        for (const Place& p : places) {
          const auto* data = reinterpret_cast<uint8_t*>(&p.tensor->data);
          if (args + at >= data && args + at < data + sizeof(void*)) return;
        }
        for (const size_t offset : pointers) {
          if (at >= offset && at < offset + sizeof(void*)) return;
        }
        args[at] ^= static_cast<uint8_t>(1u << next() % 8);
        break;
      }
      case 2:
        t.data = nullptr;
        break;
      case 3:
        if (t.data) t.data = static_cast<uint8_t*>(t.data) + 1 + next() % 8;
        break;
      case 4:
        t.shape[next() % FULMEN_MAX_DIMS] = extreme();
        break;
      case 5:
        t.stride[next() % FULMEN_MAX_DIMS] = extreme();
        break;
      case 6:
        t.ndim = static_cast<int32_t>(next() % 9) - 1;
        break;
      case 7:
        t.dtype = static_cast<int32_t>(next() % 12) - 1;
        break;
      case 8:
        t.device = static_cast<int32_t>(next() % 5) - 1;
        break;
      case 9:
        std::swap(t, *places[next() % places.size()].tensor);
        break;
      case 10: {
        const size_t sizes[] = {0, 4, 8, args_size / 2, args_size - 8, args_size, args_size + 8, 1 << 20, SIZE_MAX};
        std::memcpy(args, &sizes[next() % std::size(sizes)], sizeof(size_t));
        break;
      }
      default: {  // what only a device would hold
        std::vector<Buffer*> indices;
        for (auto& b : buffers) {
          if (b->is_index && b->count > 0) indices.push_back(b.get());
        }
        if (indices.empty()) break;
        Buffer& b = *indices[next() % indices.size()];
        set_index(b, next() % b.count, extreme());
      }
    }
  }

 private:
  std::vector<uint8_t> storage_;
  std::vector<std::vector<uint8_t>> others_;
};

/// Valid calls of every op; `variant` chooses among their forms.
class Calls {
 public:
  explicit Calls(int threads = 2) {
    fulmen_context_options options{};
    options.struct_size = sizeof options;
    options.num_threads = threads;
    if (fulmen_context_create(&options, &context_) != FULMEN_OK) broken(fulmen_last_error());
  }
  ~Calls() { fulmen_context_destroy(context_); }
  Calls(const Calls&) = delete;

  static constexpr uint32_t kOps = 15, kCreate = 10;

  std::unique_ptr<Call> make(uint32_t which, uint32_t variant) {
    auto call = std::make_unique<Call>();
    Call& c = *call;
    fulmen_context* x = context_;
    const int32_t dtype = static_cast<int32_t>(variant % 3);  // f32, f16, bf16
    const int32_t index = variant / 3 % 2 ? FULMEN_I64 : FULMEN_I32;
    const bool other = variant / 6 % 2;
    switch (which % kOps) {
      case 0: {
        auto* a = c.make_args<fulmen_act_and_mul_args>();
        c.op = "act_and_mul";
        c.put("x", a->x, dtype, {3, 38});
        c.put("out", a->out, dtype, {3, 19}, true);
        c.run = [a, x] { return fulmen_act_and_mul(x, a, nullptr); };
        break;
      }
      case 1: {
        auto* a = c.make_args<fulmen_rms_norm_args>();
        c.op = "rms_norm";
        const std::vector<int64_t> shape = other ? std::vector<int64_t>{3, 2, 24} : std::vector<int64_t>{3, 24};
        c.put("x", a->x, dtype, shape);
        c.put("weight", a->weight, other ? FULMEN_F32 : dtype, {24});
        c.put("residual", a->residual, dtype, shape, true, false);
        c.put("out", a->out, dtype, shape, true);
        a->eps = 1e-5f;
        c.run = [a, x] { return fulmen_rms_norm(x, a, nullptr); };
        break;
      }
      case 2: {
        auto* a = c.make_args<fulmen_layer_norm_args>();
        c.op = "layer_norm";
        c.put("x", a->x, dtype, {3, 24});
        c.put("weight", a->weight, dtype, {24});
        c.put("bias", a->bias, dtype, {24}, false, false);
        c.put("out", a->out, dtype, {3, 24}, true);
        c.run = [a, x] { return fulmen_layer_norm(x, a, nullptr); };
        break;
      }
      case 3: {
        auto* a = c.make_args<fulmen_rope_args>();
        c.op = "rope";
        c.put("q", a->q, dtype, {4, 2, 16}, !other);
        c.put("k", a->k, dtype, {4, 1, 16}, !other, false);
        if (other) {
          c.put("q_out", a->q_out, dtype, {4, 2, 16}, true, false);
          c.put("k_out", a->k_out, dtype, {4, 1, 16}, true, false);
          c.put("cos_sin_cache", a->cos_sin_cache, FULMEN_F32, {9, 8}, false, false);
        }
        c.put_index("positions", a->positions, index, {0, 8, 3, 1});
        a->params.scaling = static_cast<int32_t>(variant / 12 % 4);
        a->params.original_context = 64;
        a->params.low_freq_factor = 1, a->params.high_freq_factor = 4, a->params.factor = 2;
        // In place q and k are outputs even where the others were taken away.
        if (other) c.places[0].output = c.places[1].output = true;
        c.run = [a, x] { return fulmen_rope(x, a, nullptr); };
        break;
      }
      case 4: {
        auto* a = c.make_args<fulmen_softmax_args>();
        c.op = "softmax";
        c.put("logits", a->logits, dtype, {3, 37});
        c.put("probs", a->probs, FULMEN_F32, {3, 37}, true);
        if (other) c.put("temperatures", a->temperatures, FULMEN_F32, {3}, false, false);
        c.run = [a, x] { return fulmen_softmax(x, a, nullptr); };
        break;
      }
      case 5: {
        auto* a = c.make_args<fulmen_argmax_args>();
        c.op = "argmax";
        c.put("x", a->x, dtype, {3, 37});
        c.put("index", a->index, FULMEN_I32, {3}, true);
        c.run = [a, x] { return fulmen_argmax(x, a, nullptr); };
        break;
      }
      case 6: {
        auto* a = c.make_args<fulmen_sample_args>();
        c.op = "sample";
        a->input_is_probs = dtype == FULMEN_F32 && other;
        c.put("input", a->input, dtype, {3, 37});
        c.put("tokens", a->tokens, FULMEN_I32, {3}, true);
        c.put("logprob", a->logprob, FULMEN_F32, {3}, true, false);
        a->filter.temperature = 1, a->filter.top_p = 0.9f, a->filter.top_k = 5;
        if (other) {
          c.put_index("seeds", a->seeds, FULMEN_U64, {1, 2, 3}, {}, false);
          c.put_index("offsets", a->offsets, FULMEN_I64, {1, 2, 3}, {}, false);
          c.put_index("row_ids", a->row_ids, FULMEN_I32, {2, 2, 0}, {}, false);
          c.put_index("filter.top_ks", a->filter.top_ks, FULMEN_I32, {1, 50, 0}, {}, false);
          c.put("filter.top_ps", a->filter.top_ps, FULMEN_F32, {3}, false, false);
          c.put("filter.min_ps", a->filter.min_ps, FULMEN_F32, {3}, false, false);
          c.put("filter.temperatures", a->filter.temperatures, FULMEN_F32, {3}, false, false);
        }
        c.run = [a, x] { return fulmen_sample(x, a, nullptr); };
        break;
      }
      case 7: {
        auto* a = c.make_args<fulmen_filter_args>();
        c.op = "filter";
        c.put("input", a->input, dtype, {3, 37});
        c.put("output", a->output, FULMEN_F32, {3, 37}, true);
        a->output_is_logits = other;
        a->filter.temperature = 1, a->filter.top_p = 0.9f, a->filter.min_p = 0.1f;
        c.run = [a, x] { return fulmen_filter(x, a, nullptr); };
        break;
      }
      case 8: {
        auto* a = c.make_args<fulmen_top_k_args>();
        c.op = "top_k";
        c.put("x", a->x, dtype, {3, 37});
        c.put("values", a->values, dtype, {3, 4}, true);
        c.put("indices", a->indices, FULMEN_I32, {3, 4}, true);
        c.run = [a, x] { return fulmen_top_k(x, a, nullptr); };
        break;
      }
      case 9: {
        auto* a = c.make_args<fulmen_append_kv_args>();
        c.op = "append_kv";
        c.put("k", a->k, dtype, {5, 2, 8});
        c.put("v", a->v, dtype, {5, 2, 16});
        c.put("k_cache", a->k_cache, dtype, {6, 4, 2, 8}, true);
        c.put("v_cache", a->v_cache, dtype, {6, 4, 2, 16}, true);
        if (variant / 12 % 3 == 0) {
          c.put_index("slot_mapping", a->slot_mapping, FULMEN_I64, {0, 7, -1, 23, 4});
        } else {
          c.put_index("qo_indptr", a->qo_indptr, index, {0, 1, 5});
          if (variant / 12 % 3 == 1) {
            c.put_index("table", a->table.table, index, {0, 1, 2, 3, 4, 5}, {3, 2});
            c.put_index("row_index", a->table.row_index, index, {2, 0}, {}, false);
            c.put_index("kv_len", a->kv_len, index, {3, 7});
          } else {
            c.put_index("table", a->table.table, index, {0, 5, 2});
            c.put_index("table.indptr", a->table.indptr, index, {0, 1, 3});
            c.put_index("last_page_len", a->last_page_len, index, {3, 4});
          }
        }
        c.run = [a, x] { return fulmen_append_kv(x, a, nullptr); };
        break;
      }
      case 13: {
        auto* a = c.make_args<fulmen_merge_states_args>();
        c.op = "merge_states";
        c.put("part_o", a->part_o, dtype, {3, 4, 2, 24});
        c.put("part_lse", a->part_lse, FULMEN_F32, {3, 4, 2});
        c.put("o", a->o, dtype, {4, 2, 24}, true);
        c.put("lse", a->lse, FULMEN_F32, {4, 2}, true, false);
        c.run = [a, x] { return fulmen_merge_states(x, a, nullptr); };
        break;
      }
      case 14: {
        auto* a = c.make_args<fulmen_merge_state_args>();
        c.op = "merge_state";
        c.put("o_a", a->o_a, dtype, {4, 2, 24});
        c.put("lse_a", a->lse_a, FULMEN_F32, {4, 2});
        c.put("o_b", a->o_b, dtype, {4, 2, 24});
        c.put("lse_b", a->lse_b, FULMEN_F32, {4, 2});
        c.put("o", a->o, dtype, {4, 2, 24}, true);
        c.put("lse", a->lse, FULMEN_F32, {4, 2}, true, false);
        c.run = [a, x] { return fulmen_merge_state(x, a, nullptr); };
        break;
      }
      default:
        attention(c, variant, which % kOps - 10, dtype, index);
    }
    return call;
  }

 private:
  struct Handle {
    fulmen_attention* attention = nullptr;
    ~Handle() { fulmen_attention_destroy(attention); }
  };
  /// Which of the structs is mutated: 0 limits and spec, 1 lengths, 2 tensors.
  void attention(Call& c, uint32_t variant, uint32_t part, int32_t dtype, int32_t index) {
    const bool csr = variant / 12 % 2, levels = variant / 24 % 2, variants = variant / 48 % 2, ragged = !csr && variant / 96 % 2;
    auto* spec = part == 0 && variant / 6 % 2 ? c.make_args<fulmen_attention_spec>() : c.make_other<fulmen_attention_spec>();
    auto* limits = part == 0 && !(variant / 6 % 2) ? c.make_args<fulmen_attention_limits>() : c.make_other<fulmen_attention_limits>();
    auto* lengths = part == 1 ? c.make_args<fulmen_attention_lengths>() : c.make_other<fulmen_attention_lengths>();
    auto* t = part == 2 ? c.make_args<fulmen_attention_tensors>() : c.make_other<fulmen_attention_tensors>();
    c.op = part == 0 ? "attention_create" : part == 1 ? "attention_plan" : "attention_run";
    spec->q_dtype = spec->kv_dtype = spec->o_dtype = dtype;
    spec->head_dim_qk = 16, spec->head_dim_vo = 8;
    if (variants) spec->features = FULMEN_ATTENTION_SOFT_CAP | FULMEN_ATTENTION_ALIBI | FULMEN_ATTENTION_SINKS | FULMEN_ATTENTION_ROPE | FULMEN_ATTENTION_CUSTOM_MASK;
    limits->max_requests = 3, limits->max_rows = 8, limits->max_kv_len = 600;
    limits->num_levels = levels ? 2 : 1, limits->num_groups = 1;
    limits->groups[0] = {sizeof(fulmen_attention_group), 4, 2, variant / 6 % 2 ? 1 : 0, variants ? 5 : -1};
    lengths->num_levels = limits->num_levels;
    lengths->page_size = t->page_size = 4;
    const auto level_name = [](int level, const char* member) { return "levels[" + std::to_string(level) + "]." + member; };
    if (levels) {
      c.put_index(level_name(0, "qo_indptr"), lengths->levels[0].qo_indptr, index, {0, 4});
      c.put_index(level_name(0, "kv_len"), lengths->levels[0].kv_len, index, {300});
    }
    auto& own = lengths->levels[levels ? 1 : 0];
    const int last = levels ? 1 : 0;
    c.put_index(level_name(last, "qo_indptr"), own.qo_indptr, index, {0, 1, 4});
    if (csr) {
      c.put_index(level_name(last, "kv_page_indptr"), own.kv_page_indptr, index, {0, 2, 3});
      c.put_index(level_name(last, "last_page_len"), own.last_page_len, index, {3, 4});
    } else {
      c.put_index(level_name(last, "kv_len"), own.kv_len, index, {7, 4});
    }
    const size_t lengths_places = c.places.size();
    c.put("q", t->q, dtype, {4, 4, 16});
    c.put("k", t->k, dtype, ragged ? std::vector<int64_t>{40, 2, 16} : std::vector<int64_t>{9, 4, 2, 16});
    c.put("v", t->v, dtype, ragged ? std::vector<int64_t>{40, 2, 8} : std::vector<int64_t>{9, 4, 2, 8});
    c.put("o", t->o, dtype, {4, 4, 8}, true);
    c.put("lse", t->lse, FULMEN_F32, {4, 4}, true, false);
    const auto table_name = [](int level, const char* member) { return "kv[" + std::to_string(level) + "]." + member; };
    for (int level = 0; level < limits->num_levels; ++level) {
      auto& to = t->kv[level];
      if (ragged) {
        c.put_index(table_name(level, "indptr"), to.indptr, index, {0, 20, 40});
      } else if (csr) {
        c.put_index(table_name(level, "table"), to.table, index, {8, 0, 3});
        c.put_index(table_name(level, "indptr"), to.indptr, index, {0, 2, 3});
      } else {
        c.put_index(table_name(level, "table"), to.table, index, {8, 0, 3, 1}, {2, 2});
      }
    }
    if (variants) {
      t->logits_soft_cap = 3;
      c.put("alibi_slopes", t->alibi_slopes, FULMEN_F32, {4});
      c.put("sinks", t->sinks, FULMEN_F32, {4});
      c.put("mask", t->mask, FULMEN_U8, {16});
      c.put_index("mask_indptr", t->mask_indptr, index, {0, 5, 16});
    }
    if (part == 1) c.also_written = {&t->o, &t->lse};
    if (part == 1) c.places.resize(lengths_places);
    if (part == 2) c.places.erase(c.places.begin(), c.places.begin() + static_cast<long>(lengths_places));
    if (part == 0) {
      for (Place& p : c.places) p.required = false;
    }
    if (part == 0) c.pointers = variant / 6 % 2 ? std::vector<size_t>{offsetof(fulmen_attention_spec, variant_name), offsetof(fulmen_attention_spec, variant_source)} : std::vector<size_t>{};
    if (part == 2) c.pointers = {offsetof(fulmen_attention_tensors, variant_params)};
    auto handle = std::make_shared<Handle>();
    fulmen_context* context = context_;
    if (part != 0 && fulmen_attention_create(context, spec, limits, &handle->attention) != FULMEN_OK) broken(fulmen_last_error());
    c.run = [=] {
      if (part == 0) {
        fulmen_attention_destroy(handle->attention);
        handle->attention = nullptr;
        if (const auto status = fulmen_attention_create(context, spec, limits, &handle->attention); status != FULMEN_OK) return status;
      }
      fulmen_attention_sizes sizes{};
      sizes.struct_size = sizeof sizes;
      if (fulmen_attention_sizes_of(handle->attention, &sizes) != FULMEN_OK) broken(fulmen_last_error());
      if (sizes.plan_bytes + sizes.scratch_bytes > (16u << 20)) return FULMEN_OK;  // true of large limits; not for a test
      std::vector<uint8_t> memory(sizes.plan_bytes + sizes.scratch_bytes + 1024, 0xff);
      auto* plan = memory.data() + (256 - reinterpret_cast<uintptr_t>(memory.data()) % 256) % 256;
      auto* scratch = plan + sizes.plan_bytes;
      const auto guarded = [&] {
        for (const uint8_t* p = scratch + sizes.scratch_bytes; p < memory.data() + memory.size(); ++p) {
          if (*p != 0xff) broken("attention: written past plan and scratch");
        }
      };
      const auto planned = fulmen_attention_plan(handle->attention, lengths, plan, nullptr);
      guarded();
      if (planned != FULMEN_OK) return part == 0 ? FULMEN_OK : planned;  // other limits, other lengths: rightly refused
      fulmen_status_record record;
      std::memcpy(&record, plan, sizeof record);
      if (record.fault < FULMEN_FAULT_NONE || record.fault > FULMEN_FAULT_SAMPLING) broken("attention_plan: no status record");
      const auto ran = fulmen_attention_run(handle->attention, t, plan, scratch, nullptr);
      guarded();
      return part == 2 ? ran : FULMEN_OK;
    };
  }

  fulmen_context* context_ = nullptr;
};

/// One valid call with one to four things changed. True if it was still accepted.
inline bool abi_target(Calls& calls, const Source& next) {
  const uint32_t which = next(), variant = next();
  const auto call = calls.make(which, variant);
  uint32_t edits = 1 + next() % 4;
  const bool only_one = edits == 1;  // of several changes one may take away what reads the other
  for (; edits > 0; --edits) call->mutate(next);
  bool absurd = false;
  for (const Place& place : call->places) {
    const auto fit = call->fit(*place.tensor);
    if (fit == Call::Fit::beyond) return false;
    absurd = absurd || (fit == Call::Fit::absurd && place.required);
  }
  // An optional tensor that is absurd is read by no variant but its own: the call may pass over it.
  for (const Place& place : call->places) {
    if (!place.required && call->fit(*place.tensor) == Call::Fit::absurd) return false;
  }
  size_t size;
  std::memcpy(&size, call->args, sizeof size);
  return call->checked_run(absurd && only_one && size == call->args_size) == FULMEN_OK;
}

/// A fuzzer's bytes as a source.
inline Source bytes_source(const uint8_t* data, size_t size) {
  auto at = std::make_shared<size_t>(0);
  return [=] {
    uint32_t value = 0;
    for (int i = 0; i < 2 && *at < size; ++i) value = value << 8 | data[(*at)++];
    return value;
  };
}

}  // namespace fulmen::fuzz
