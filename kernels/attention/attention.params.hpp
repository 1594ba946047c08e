// Everything one attention call needs, passed whole and by value to every back end.
// Strides are in elements; the innermost dimension has stride 1.
#pragma once
#include <kernels/attention/schedule.hpp>
#include <kernels/prelude/prelude.hpp>

namespace fulmen {

// fulmen_attention_spec.features, the same bits.
enum AttentionFeature : uint32_t {
  kSoftCap = 1u << 0,
  kAlibi = 1u << 1,
  kSinks = 1u << 2,
  kRope = 1u << 3,
  kCustomMask = 1u << 4,
  kNoSoftmax = 1u << 5,
};

constexpr float kLn2 = 0.69314718055994531f;

enum class KvForm : int32_t { ragged = 0, table_2d = 1, csr = 2 };

// Where the pages of each segment of a level are listed (fulmen_kv_table).
struct KvTable {
  const void* table;      // 2-D: [table_rows, width]; CSR: [width]; i32 | i64
  const void* indptr;     // CSR: [segments + 1] pages; ragged: [segments + 1] rows of K and V
  const void* row_index;  // 2-D only, nullable: [segments]
  int64_t row_stride;     // 2-D
  int64_t width;          // entries in a row of the table; CSR: in the whole table
  int64_t table_rows;     // 2-D
  KvForm form;
  int8_t table_i64, indptr_i64, row_index_i64;
  int8_t reserved;
};

// K or V: [num_pages, page_size, num_kv_heads, head_dim], in any order of strides. Ragged: num_pages counts rows,
// each of one token, and stride_page is the row's stride.
struct KvStorage {
  const void* data;
  int64_t stride_page, stride_token, stride_head;
  int64_t num_pages;
};

// A segment's row of a table: pages [0, num_pages) of it may be read. data = null: the row itself is out of bounds.
struct PageList {
  const void* data;
  int64_t first;      // index of page 0 in data; ragged: the first row
  int64_t num_pages;  // entries that exist
  bool i64;
  bool ragged;
};

FULMEN_FN PageList page_list(const KvTable& t, int32_t segment) {
  if (t.form == KvForm::table_2d) {
    const int64_t row = t.row_index ? load_index(t.row_index, t.row_index_i64, segment) : segment;
    if (row < 0 || row >= t.table_rows) return {nullptr, 0, 0, false, false};
    return {t.table, row * t.row_stride, t.width, t.table_i64 != 0, false};
  }
  const int64_t begin = load_index(t.indptr, t.indptr_i64, segment);
  const int64_t end = load_index(t.indptr, t.indptr_i64, segment + 1);
  const bool ragged = t.form == KvForm::ragged;
  if (begin < 0 || end < begin || (!ragged && end > t.width)) return {nullptr, 0, 0, false, ragged};
  if (ragged) return {nullptr, begin, end - begin, false, true};
  return {t.table, begin, end - begin, t.table_i64 != 0, false};
}

// Id of page (ragged: of token) j of the list, -1 where the list is too short or the id isn't in [0, num_pages).
FULMEN_FN int64_t page_id(const PageList& list, int64_t j, int64_t num_pages) {
  if (j >= list.num_pages) return -1;
  const int64_t id = list.ragged ? list.first + j : list.data ? load_index(list.data, list.i64, list.first + j) : -1;
  return id < 0 || id >= num_pages ? -1 : id;
}

struct AttentionParams {
  const void* q;   // q_dtype [num_rows, num_qo_heads, head_dim_qk]
  void* o;         // o_dtype [num_rows, num_qo_heads, head_dim_vo]
  float* lse;      // [num_rows, num_qo_heads] nullable
  KvStorage k, v;  // kv_dtype
  KvTable kv[kMaxLevels];
  KvTable v_table[kMaxLevels];  // the same as kv where V shares K's pages
  void* plan;                   // read, but for the status record at its head
  void* scratch;                // partial slots (slot_layout); the CPU's working memory lies behind them

  int64_t q_stride_row, q_stride_head;
  int64_t o_stride_row, o_stride_head;
  int64_t lse_stride_row, lse_stride_head;
  int64_t num_rows;             // of q and o: no row beyond is touched, whatever the plan says

  DType q_dtype, kv_dtype, o_dtype;
  int32_t head_dim_qk, head_dim_vo;
  int32_t page_size;
  int32_t group;                // of shape.groups
  uint32_t features;            // AttentionFeature
  int32_t v_shares_table;

  float sm_scale;
  float o_scale;                // of the finished output
  float lse_unit;               // of an lse in base 2: ln 2, or 1 to leave it there
  float logits_soft_cap;
  const float* alibi_slopes;    // [num_qo_heads]
  const float* sinks;           // [num_qo_heads]
  const uint8_t* mask;          // bits
  const void* mask_indptr;      // [num_requests + 1] bytes
  int64_t mask_bytes;
  int32_t mask_indptr_i64;

  // RoPE on the fly, with the angles of math/rotation.hpp: pair i turns by position * rope_step[i].
  int32_t rotary_dim;           // even; dims from here on are not rotated
  int32_t rope_interleaved;
  float rope_scale;             // of cos and sin (YaRN), else 1
  uint64_t rope_step[128];      // [rotary_dim / 2] fraction of a turn per position, times 2^64

  ScheduleShape shape;

  // A user's variant: its Params, byte by byte.
  static constexpr int kVariantBytes = 256;
  int32_t variant_bytes;
  alignas(16) unsigned char variant[kVariantBytes];
};

static_assert(sizeof(AttentionParams) <= 4000, "kernel parameters are limited to 4 KiB");

}  // namespace fulmen
