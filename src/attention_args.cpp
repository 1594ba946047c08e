#include "attention_args.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#include "entry.hpp"
#include "plan/rope_frequencies.hpp"

namespace fulmen {
namespace {

constexpr std::initializer_list<int32_t> kIndexDtypes = {FULMEN_I32, FULMEN_I64};

int8_t is_i64(const fulmen_tensor& t) { return t.dtype == FULMEN_I64 ? 1 : 0; }

void check_index(const char* op, const std::string& name, const fulmen_tensor& t, Dim size,
                 const fulmen_context& context) {
  check_vector(op, name.c_str(), t, size, kIndexDtypes, context);
}

KvStorage read_storage(const char* op, const char* name, const fulmen_context& context, const fulmen_tensor& t,
                       int32_t dtype, Sym& pages, int64_t page_size, int64_t heads, int64_t dim, bool ragged) {
  Check check(op, name, t);
  check.present().dtype({dtype}).rows().aligned();
  check_device(op, name, t, context);
  if (ragged) {
    check.dims({pages, heads, dim});
    return {t.data, t.stride[0], 0, t.stride[1], t.shape[0]};
  }
  check.dims({pages, page_size, heads, dim});
  return {t.data, t.stride[0], t.stride[1], t.stride[2], t.shape[0]};
}

void check_unwanted(const char* op, const char* name, bool wanted, const fulmen_tensor& t) {
  require(wanted || !present(t), "{}: {}: the handle was made without the feature that reads it", op, name);
}

bool has_table(const fulmen_kv_table& t) { return present(t.table) || present(t.indptr) || present(t.row_index); }

}  // namespace

namespace {

// The reader of one level's arrays: those on the host are noted, all others must be on the context's device.
struct LevelReader {
  const char* op;
  const fulmen_context& context;
  int32_t level;
  LevelLengths& to;
  std::vector<HostArray>& host;

  std::string name(const char* member) const { return fmt::format("levels[{}].{}", level, member); }

  void read(const char* member, const fulmen_tensor& t, Dim size, const void* LevelLengths::*data, int8_t LevelLengths::*i64) {
    const std::string full = name(member);
    const bool staged = !context.is_cpu() && t.device == FULMEN_CPU;
    if (staged) {
      Check(op, full.c_str(), t).present().dtype(kIndexDtypes).dims({size}).rows().aligned();
      host.push_back({full, level, data, static_cast<size_t>(num_elements(t)) * static_cast<size_t>(dtype_size(t.dtype))});
    } else {
      check_index(op, full, t, size, context);
    }
    to.*data = t.data;
    to.*i64 = is_i64(t);
  }
  bool on_host(const void* LevelLengths::*member) const {
    for (const HostArray& array : host) {
      if (array.level == level && array.member == member) return true;
    }
    return false;
  }
};

// What the plan kernel would call a fault, refused by name where the host can see it.
void check_host_values(const LevelReader& reader, const ScheduleShape& shape, const ScheduleLengths& lengths) {
  const LevelLengths& in = lengths.levels[reader.level];
  if (reader.on_host(&LevelLengths::qo_indptr)) {
    const std::string name = reader.name("qo_indptr");
    int64_t before = 0;
    for (int32_t i = 0; i <= in.num_segments; ++i) {
      const int64_t entry = load_index(in.qo_indptr, in.qo_indptr_i64, i);
      require(entry >= before && entry <= shape.max_rows, "{}: {}[{}]: expected {} to {} (limits.max_rows), found {}",
              reader.op, name, i, before, shape.max_rows, entry);
      const bool is_request = reader.level == shape.num_levels - 1;
      require(!is_request || i == 0 || entry - before <= shape.max_qo_len,
              "{}: {}[{}]: expected at most {} rows of a request (limits.max_qo_len), found {}", reader.op,
              name, i, shape.max_qo_len, entry - before);
      before = entry;
    }
  }
  const bool by_pages = in.kv_len == nullptr;
  const bool readable = by_pages ? reader.on_host(&LevelLengths::kv_page_indptr) && reader.on_host(&LevelLengths::last_page_len)
                                 : reader.on_host(&LevelLengths::kv_len);
  const std::string name = reader.name(by_pages ? "last_page_len" : "kv_len");
  for (int32_t s = 0; readable && s < in.num_segments; ++s) {
    int64_t value = 0, limit = 0;
    require(segment_length(lengths, reader.level, s, shape.max_kv_len, value, limit) >= 0,
            "{}: {}[{}]: expected 0 to {}, found {}", reader.op, name, s, limit, value);
  }
}

}  // namespace

ScheduleLengths read_lengths(const char* op, const fulmen_context& context, const ScheduleShape& shape,
                             const fulmen_attention_lengths& lengths, std::vector<HostArray>& host) {
  const int32_t num_levels = lengths.num_levels == 0 ? 1 : lengths.num_levels;
  require(num_levels == shape.num_levels, "{}: lengths.num_levels: expected the limits' {}, found {}", op,
          shape.num_levels, num_levels);
  ScheduleLengths out{};
  out.num_levels = num_levels;
  out.page_size = lengths.page_size;
  for (int32_t level = 0; level < num_levels; ++level) {
    const fulmen_attention_level& in = lengths.levels[level];
    LevelLengths& to = out.levels[level];
    LevelReader reader{op, context, level, to, host};
    Sym entries{"num_segments + 1"};
    reader.read("qo_indptr", in.qo_indptr, entries, &LevelLengths::qo_indptr, &LevelLengths::qo_indptr_i64);
    require(entries >= 1, "{}: {}: expected at least 1 entry, found 0", op, reader.name("qo_indptr"));
    const int64_t segments = entries - 1;
    require(segments <= shape.max_requests, "{}: {}: expected at most {} segments (limits.max_requests), found {}", op,
            reader.name("qo_indptr"), shape.max_requests, segments);
    to.num_segments = static_cast<int32_t>(segments);
    // A level without segments may leave its lengths out.
    if (present(in.kv_len) || (segments == 0 && !present(in.kv_page_indptr))) {
      require(!present(in.kv_page_indptr), "{}: {}: expected kv_len or pages, found both", op, reader.name("kv_len"));
      to.kv_len = in.kv_len.data ? in.kv_len.data : in.qo_indptr.data;
      if (segments > 0) reader.read("kv_len", in.kv_len, segments, &LevelLengths::kv_len, &LevelLengths::kv_len_i64);
    } else {
      require(present(in.kv_page_indptr), "{}: {}: expected kv_len, or kv_page_indptr and last_page_len, found neither",
              op, reader.name("kv_len"));
      reader.read("kv_page_indptr", in.kv_page_indptr, segments + 1, &LevelLengths::kv_page_indptr,
                  &LevelLengths::kv_page_indptr_i64);
      if (segments > 0)
        reader.read("last_page_len", in.last_page_len, segments, &LevelLengths::last_page_len, &LevelLengths::last_page_len_i64);
      require(lengths.page_size >= 1, "{}: lengths.page_size: expected at least 1 (for kv_page_indptr), found {}", op,
              lengths.page_size);
    }
    if (!host.empty()) check_host_values(reader, shape, out);
  }
  return out;
}

KvTable read_kv_table(const char* op, const std::string& name, const fulmen_context& context,
                      const fulmen_kv_table& in, bool ragged) {
  KvTable out{};
  if (present(in.indptr)) {
    check_index(op, name + ".indptr", in.indptr, Dim(in.indptr.ndim > 0 ? in.indptr.shape[0] : 0), context);
    out.indptr = in.indptr.data;
    out.indptr_i64 = is_i64(in.indptr);
  }
  if (ragged) {
    require(present(in.indptr), "{}: {}.indptr: expected the first row of each request (K has 3 dimensions: ragged), found none",
            op, name);
    require(!present(in.table), "{}: {}.table: expected none for ragged K, found one", op, name);
    out.form = KvForm::ragged;
  } else if (present(in.indptr)) {
    out.form = KvForm::csr;
    check_index(op, name + ".table", in.table, Dim(in.table.ndim > 0 ? in.table.shape[0] : 0), context);
    out.width = in.table.ndim > 0 ? in.table.shape[0] : 0;
  } else {
    out.form = KvForm::table_2d;
    require(in.table.ndim == 2, "{}: {}.table: expected [num_requests, max_pages], or CSR with indptr, found {}", op,
            name, shape_text(in.table));
    Check(op, (name + ".table").c_str(), in.table).present().dtype(kIndexDtypes).rows().aligned();
    check_device(op, (name + ".table").c_str(), in.table, context);
    out.table_rows = in.table.shape[0];
    out.width = in.table.shape[1];
    out.row_stride = in.table.stride[0];
  }
  out.table = in.table.data;
  out.table_i64 = is_i64(in.table);
  if (present(in.row_index)) {
    require(out.form == KvForm::table_2d, "{}: {}.row_index: expected with a 2-D table only", op, name);
    check_index(op, name + ".row_index", in.row_index, Dim(in.row_index.ndim > 0 ? in.row_index.shape[0] : 0), context);
    out.row_index = in.row_index.data;
    out.row_index_i64 = is_i64(in.row_index);
  }
  return out;
}

AttentionParams read_tensors(const char* op, const fulmen_context& context, const fulmen_attention_spec& spec,
                             const ScheduleShape& shape, const fulmen_attention_tensors& t) {
  require(t.group >= 0 && t.group < shape.num_groups, "{}: group: expected 0 to {}, found {}", op,
          shape.num_groups - 1, t.group);
  const ScheduleGroup& group = shape.groups[t.group];
  const int64_t qo_heads = static_cast<int64_t>(group.num_kv_heads) * group.group_size;
  AttentionParams p{};
  p.shape = shape;
  p.group = t.group;
  p.features = spec.features;
  p.q_dtype = static_cast<DType>(spec.q_dtype);
  p.kv_dtype = static_cast<DType>(spec.kv_dtype);
  p.o_dtype = static_cast<DType>(spec.o_dtype);
  p.head_dim_qk = spec.head_dim_qk;
  p.head_dim_vo = spec.head_dim_vo;

  Sym num_rows{"num_rows"};
  Check(op, "q", t.q).present().dtype({spec.q_dtype}).dims({num_rows, qo_heads, spec.head_dim_qk}).rows().aligned();
  Check(op, "o", t.o).present().dtype({spec.o_dtype}).dims({num_rows, qo_heads, spec.head_dim_vo}).rows().aligned();
  check_device(op, "q", t.q, context);
  check_device(op, "o", t.o, context);
  p.num_rows = num_rows;
  p.q = t.q.data, p.q_stride_row = t.q.stride[0], p.q_stride_head = t.q.stride[1];
  p.o = t.o.data, p.o_stride_row = t.o.stride[0], p.o_stride_head = t.o.stride[1];
  if (present(t.lse)) {
    Check(op, "lse", t.lse).present().dtype({FULMEN_F32}).dims({num_rows, qo_heads}).aligned();
    check_device(op, "lse", t.lse, context);
    p.lse = static_cast<float*>(t.lse.data);
    p.lse_stride_row = t.lse.stride[0], p.lse_stride_head = t.lse.stride[1];
  }

  require(t.k.ndim == 3 || t.k.ndim == 4, "{}: k: expected [num_pages, page_size, num_kv_heads, {}], or ragged [num_rows, num_kv_heads, {}], found {}",
          op, spec.head_dim_qk, spec.head_dim_qk, shape_text(t.k));
  const bool ragged = t.k.ndim == 3;
  require(ragged || t.page_size >= 1, "{}: page_size: expected at least 1, found {}", op, t.page_size);
  p.page_size = ragged ? 1 : t.page_size;
  Sym k_pages{ragged ? "num_kv_rows" : "num_pages"}, v_pages{k_pages};
  p.k = read_storage(op, "k", context, t.k, spec.kv_dtype, k_pages, p.page_size, group.num_kv_heads, spec.head_dim_qk,
                     ragged);
  p.v_shares_table = 1;
  for (int32_t level = 0; level < shape.num_levels; ++level) {
    p.kv[level] = read_kv_table(op, fmt::format("kv[{}]", level), context, t.kv[level], ragged);
    p.v_table[level] = p.kv[level];
    if (has_table(t.v_table[level])) {
      p.v_table[level] = read_kv_table(op, fmt::format("v_table[{}]", level), context, t.v_table[level], ragged);
      p.v_shares_table = 0;
    }
  }
  p.v = read_storage(op, "v", context, t.v, spec.kv_dtype, p.v_shares_table ? k_pages : v_pages, p.page_size,
                     group.num_kv_heads, spec.head_dim_vo, ragged);

  Check(op, "o", t.o).distinct().apart_from("q", t.q).apart_from("k", t.k).apart_from("v", t.v);
  if (p.lse) Check(op, "lse", t.lse).distinct().apart_from("o", t.o).apart_from("q", t.q).apart_from("k", t.k).apart_from("v", t.v);

  require(std::isfinite(t.sm_scale), "{}: sm_scale: expected a finite number, found {}", op, t.sm_scale);
  p.sm_scale = t.sm_scale != 0.0f ? t.sm_scale : 1.0f / std::sqrt(static_cast<float>(spec.head_dim_qk));
  require(std::isfinite(t.o_scale), "{}: o_scale: expected a finite number, found {}", op, t.o_scale);
  p.o_scale = t.o_scale != 0.0f ? t.o_scale : 1.0f;
  require(t.lse_base2 == 0 || t.lse_base2 == 1, "{}: lse_base2: expected 0 or 1, found {}", op, t.lse_base2);
  p.lse_unit = t.lse_base2 != 0 ? 1.0f : kLn2;
  if (p.features & kSoftCap) {
    require(t.logits_soft_cap > 0.0f && std::isfinite(t.logits_soft_cap),
            "{}: logits_soft_cap: expected a number above 0, found {}", op, t.logits_soft_cap);
    p.logits_soft_cap = t.logits_soft_cap;
  } else {
    require(t.logits_soft_cap == 0.0f, "{}: logits_soft_cap: expected 0 (the handle was made without soft cap), found {}",
            op, t.logits_soft_cap);
  }
  check_unwanted(op, "alibi_slopes", p.features & kAlibi, t.alibi_slopes);
  if (p.features & kAlibi) {
    check_vector(op, "alibi_slopes", t.alibi_slopes, qo_heads, {FULMEN_F32}, context);
    p.alibi_slopes = static_cast<const float*>(t.alibi_slopes.data);
  }
  check_unwanted(op, "sinks", p.features & kSinks, t.sinks);
  if (p.features & kSinks) {
    check_vector(op, "sinks", t.sinks, qo_heads, {FULMEN_F32}, context);
    p.sinks = static_cast<const float*>(t.sinks.data);
  }
  check_unwanted(op, "mask", p.features & kCustomMask, t.mask);
  if (p.features & kCustomMask) {
    Sym bytes{"mask_bytes"}, entries{"num_requests + 1"};
    check_vector(op, "mask", t.mask, bytes, {FULMEN_U8}, context);
    check_index(op, "mask_indptr", t.mask_indptr, entries, context);
    p.mask = static_cast<const uint8_t*>(t.mask.data);
    p.mask_bytes = bytes;
    p.mask_indptr = t.mask_indptr.data;
    p.mask_indptr_i64 = is_i64(t.mask_indptr);
  }
  if (p.features & kRope) {
    const int32_t rotary = t.rope.rotary_dim == 0 ? spec.head_dim_qk : t.rope.rotary_dim;
    require(rotary > 0 && rotary % 2 == 0 && rotary <= spec.head_dim_qk,
            "{}: rope.rotary_dim: expected an even number up to head_dim_qk = {}, found {}", op, spec.head_dim_qk, rotary);
    fulmen_rope_params rope = t.rope;
    rope.struct_size = sizeof rope;
    const RopeFrequencies frequencies = rope_frequencies(op, rope, rotary);
    p.rotary_dim = rotary;
    p.rope_interleaved = t.rope.interleaved;
    p.rope_scale = frequencies.scale;
    std::copy_n(frequencies.step, rotary / 2, p.rope_step);
  }
  if (spec.variant_source != nullptr) {
    require(t.variant_params_bytes <= AttentionParams::kVariantBytes && (t.variant_params != nullptr || t.variant_params_bytes == 0),
            "{}: variant_params: expected at most {} bytes, found {} at {}", op, AttentionParams::kVariantBytes,
            t.variant_params_bytes, t.variant_params);
    p.variant_bytes = static_cast<int32_t>(t.variant_params_bytes);
    if (p.variant_bytes > 0) std::memcpy(p.variant, t.variant_params, t.variant_params_bytes);
  } else {
    require(t.variant_params == nullptr && t.variant_params_bytes == 0,
            "{}: variant_params: the handle was made without a variant of the user's", op);
  }
  return p;
}

void require_plan_fits(const char* op, const AttentionParams& p, const fulmen_attention_tensors& t) {
  const PlanHeader& header = *PlanView(p.shape, p.plan).header;
  require(header.num_levels == p.shape.num_levels, "{}: plan_mem: expected a plan of this handle with {} levels, found {}",
          op, p.shape.num_levels, header.num_levels);
  require(header.total_rows <= p.num_rows, "{}: q: expected at least the plan's {} rows, found {}", op,
          header.total_rows, p.num_rows);
  for (int32_t level = 0; level < p.shape.num_levels; ++level) {
    const int64_t segments = header.num_segments[level];
    const auto check = [&](const char* member, const fulmen_kv_table& in, const KvTable& table) {
      if (table.form == KvForm::table_2d) {
        const int64_t rows = table.row_index ? in.row_index.shape[0] : table.table_rows;
        require(rows >= segments, "{}: {}[{}]: expected a row for each of the plan's {} segments, found {}", op, member,
                level, segments, rows);
      } else {
        require(in.indptr.shape[0] > segments, "{}: {}[{}].indptr: expected the plan's {} segments and one more entry, found {}",
                op, member, level, segments, in.indptr.shape[0]);
      }
    };
    check("kv", t.kv[level], p.kv[level]);
    if (!p.v_shares_table && has_table(t.v_table[level])) check("v_table", t.v_table[level], p.v_table[level]);
  }
  if (p.features & kCustomMask) {
    const int64_t requests = header.num_segments[p.shape.num_levels - 1];
    require(t.mask_indptr.shape[0] > requests, "{}: mask_indptr: expected the plan's {} requests and one more entry, found {}",
            op, requests, t.mask_indptr.shape[0]);
  }
}

}  // namespace fulmen
