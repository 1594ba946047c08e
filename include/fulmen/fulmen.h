/* Fulmen: attention, KV-cache and sampling kernels for serving large language models. The C ABI.
 *
 * Rules that hold for every call
 *   - Every struct starts with its own size (FULMEN_INIT sets it). The ABI only grows within a major version:
 *     a caller built on an older header passes a smaller struct, and the members it lacks take their defaults.
 *   - The caller owns all memory. Only *_create and fulmen_prepare allocate device memory.
 *   - On a CUDA context calls are ordered on `stream` and never wait for the device. On a CPU context `stream`
 *     is ignored and the work is done on return.
 *   - A call returns FULMEN_OK or a status; fulmen_last_error() then says which argument, what was expected and
 *     what was found. The text belongs to the calling thread and lives until its next call.
 *   - Handles may be used from any thread. Two runs may be issued at once when their scratch memories differ.
 *   - Tensors carry shape and strides in elements; unless a comment says otherwise any stride is legal but the
 *     last dimension must have stride 1. A tensor with data = NULL is absent.
 *   - LSE is a natural logarithm. A row that sees no key gives zeros and LSE = -inf.
 */
#ifndef FULMEN_H_
#define FULMEN_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define FULMEN_API __attribute__((visibility("default")))
#else
#define FULMEN_API
#endif

#define FULMEN_VERSION_MAJOR 0
#define FULMEN_VERSION_MINOR 1
#define FULMEN_VERSION_PATCH 0

/* Zeroes a struct and writes its size: FULMEN_INIT(fulmen_attention_spec, spec); */
#ifdef __cplusplus
#define FULMEN_INIT(type, name) \
  type name{};                  \
  name.struct_size = sizeof(type)
#else
#define FULMEN_INIT(type, name) \
  type name = {0};              \
  name.struct_size = sizeof(type)
#endif

/* ------------------------------------------------------------------------------------------------ basics */

typedef enum fulmen_status {
  FULMEN_OK = 0,
  FULMEN_INVALID_ARGUMENT = 1, /* what the host holds is wrong; nothing was launched */
  FULMEN_UNSUPPORTED = 2,      /* well formed, but fulmen_supports says no */
  FULMEN_OUT_OF_MEMORY = 3,
  FULMEN_NOT_PREPARED = 4,     /* a kernel would have to be compiled after seal or during a capture */
  FULMEN_COMPILE_FAILED = 5,   /* the error text carries the compiler's log */
  FULMEN_NO_DEVICE = 6,        /* no driver, no such device, or a library that the device needs is missing */
  FULMEN_CUDA_ERROR = 7,       /* the driver refused this call */
  FULMEN_CUDA_STICKY = 8,      /* the CUDA context is lost: the process must restart it */
  FULMEN_FORKED = 9,           /* the parent process had used the GPU before fork */
  FULMEN_IO_ERROR = 10,
  FULMEN_INTERNAL = 11         /* a fault of Fulmen's own; please report it */
} fulmen_status;

typedef enum fulmen_dtype {
  FULMEN_F32 = 0,
  FULMEN_F16 = 1,
  FULMEN_BF16 = 2,
  FULMEN_F8_E4M3 = 3,
  FULMEN_F8_E5M2 = 4,
  FULMEN_I32 = 5,
  FULMEN_I64 = 6,
  FULMEN_U8 = 7,
  FULMEN_U32 = 8,
  FULMEN_U64 = 9
} fulmen_dtype;

/* Values are DLPack's. */
typedef enum fulmen_device_type { FULMEN_CPU = 1, FULMEN_CUDA = 2 } fulmen_device_type;

#define FULMEN_MAX_DIMS 5

/* A view; nothing is owned. device = 0 means the context's device. */
typedef struct fulmen_tensor {
  void* data;
  int32_t dtype;  /* fulmen_dtype */
  int32_t ndim;
  int32_t device; /* fulmen_device_type, or 0 */
  int32_t reserved;
  int64_t shape[FULMEN_MAX_DIMS];
  int64_t stride[FULMEN_MAX_DIMS]; /* in elements */
} fulmen_tensor;

typedef struct fulmen_context fulmen_context;
typedef void* fulmen_stream; /* CUstream; NULL, 1 (legacy) and 2 (per-thread) mean what they mean in CUDA */

FULMEN_API const char* fulmen_version(void);
FULMEN_API const char* fulmen_status_name(fulmen_status status);
FULMEN_API const char* fulmen_last_error(void);
/* Frees a string that Fulmen returned. */
FULMEN_API void fulmen_string_free(char* text);

typedef enum fulmen_log_level {
  FULMEN_LOG_ERROR = 0,
  FULMEN_LOG_WARNING = 1,
  FULMEN_LOG_INFO = 2,
  FULMEN_LOG_DEBUG = 3
} fulmen_log_level;
typedef void (*fulmen_log_fn)(void* user, fulmen_log_level level, const char* text);
/* Without a callback warnings and errors go to standard error. */
FULMEN_API void fulmen_set_log(fulmen_log_fn callback, void* user, fulmen_log_level level);

/* Calls body(user_body, i) for every i in [0, count), on any threads, and returns when all are done. */
typedef void (*fulmen_parallel_body)(void* user_body, int64_t i);
typedef void (*fulmen_parallel_for)(void* user, int64_t count, fulmen_parallel_body body, void* user_body);

typedef struct fulmen_context_options {
  size_t struct_size;
  int32_t device_type;  /* fulmen_device_type; 0: CPU */
  int32_t device_index;
  int32_t num_threads;  /* CPU; 0: FULMEN_NUM_THREADS, else what affinity mask and cgroup allow */
  int32_t reserved;
  fulmen_parallel_for parallel_for; /* CPU: the engine's own threads instead of Fulmen's pool */
  void* parallel_user;
  const char* cache_dir;     /* NULL: FULMEN_CACHE_DIR, $XDG_CACHE_HOME/fulmen, ~/.cache/fulmen */
  const char* nvrtc_path;    /* NULL: searched, see `fulmen info` */
  const char* kernels_dir;   /* NULL: the sources embedded in the library */
} fulmen_context_options;

FULMEN_API fulmen_status fulmen_context_create(const fulmen_context_options* options, fulmen_context** context);
FULMEN_API void fulmen_context_destroy(fulmen_context* context);
/* Threads that a CPU context uses; multiprocessors of a CUDA one. */
FULMEN_API int32_t fulmen_context_num_workers(const fulmen_context* context);

/* ------------------------------------------------------------------------------------------ KV addressing */

/* Where the KV rows of each request (or prefix segment) lie. One of three forms:
 *   2-D     table [num_requests, max_pages] i32 | i64, any row stride; page j of request r is table[row(r), j],
 *           row(r) = row_index[r] where row_index is given, else r
 *   CSR     indptr [num_requests + 1] counts pages, table [num_pages] holds the page ids of all requests
 *   ragged  no table: request r's rows start at row indptr[r] of a [num_rows, num_kv_heads, head_dim] tensor
 * Entries past a request's length are never read. Two requests may name the same page. */
typedef struct fulmen_kv_table {
  size_t struct_size;
  fulmen_tensor table;
  fulmen_tensor indptr;    /* i32 | i64 */
  fulmen_tensor row_index; /* i32 | i64 [num_requests], 2-D form only */
} fulmen_kv_table;

/* ------------------------------------------------------------------------------------------ attention
 *
 *   s[i, j] = logit(sm_scale * q[i] . k[j]),  o[i] = sum_j softmax_j(s[i, j]) v[j],  lse[i] = ln sum_j exp(s[i, j])
 *
 * Query rows are ragged: request r owns rows qo_indptr[r] .. qo_indptr[r + 1]. Its keys are the keys of its
 * chain of levels, in order: level 0's first. With one level that is simply its KV. With several, a segment of
 * level l serves the rows of all requests it spans (a shared prefix), and the last level holds what each request
 * has of its own. The absolute position of a key counts from the start of the chain; row i of a request with
 * n rows and L keys in all stands at position L - n + i.
 */

enum { /* fulmen_attention_spec.features: what the kernel is compiled with */
  FULMEN_ATTENTION_SOFT_CAP = 1 << 0,    /* s -> cap tanh(s / cap) */
  FULMEN_ATTENTION_ALIBI = 1 << 1,       /* s += slope[head] (key position - row position) */
  FULMEN_ATTENTION_SINKS = 1 << 2,       /* one extra logit per query head in the softmax sum, without a value */
  FULMEN_ATTENTION_ROPE = 1 << 3,        /* q and k are rotated by their positions on the fly */
  FULMEN_ATTENTION_CUSTOM_MASK = 1 << 4, /* bits decide visibility, on top of causal and window */
  FULMEN_ATTENTION_NO_SOFTMAX = 1 << 5   /* o = sum_j s[i, j] v[j]; lse is not written */
};

typedef struct fulmen_attention_spec {
  size_t struct_size;
  int32_t q_dtype, kv_dtype, o_dtype;   /* f32 | f16 | bf16 */
  int32_t head_dim_qk, head_dim_vo;     /* multiples of 8 up to 256 */
  uint32_t features;                    /* FULMEN_ATTENTION_* */
  int32_t batch_invariant;              /* 1: results don't depend on neighbours, chunking or split */
  int32_t reserved;
  const char* variant_name;             /* a user's variant: a struct of functions, see docs/how-to-add-a-variant.md */
  const char* variant_source;           /* its source text; CUDA only */
} fulmen_attention_spec;

/* Layers of one model that share a plan but differ in heads, window or causality. */
typedef struct fulmen_attention_group {
  size_t struct_size;
  int32_t num_qo_heads, num_kv_heads;
  int32_t causal;       /* 1: key position <= row position */
  int32_t window_left;  /* key position >= row position - window_left; -1: unlimited */
} fulmen_attention_group;

#define FULMEN_MAX_LEVELS 4
#define FULMEN_MAX_GROUPS 8

/* Upper bounds. plan and run refuse what exceeds them. */
typedef struct fulmen_attention_limits {
  size_t struct_size;
  int64_t max_requests;   /* per level */
  int64_t max_rows;       /* query rows of all requests */
  int64_t max_qo_len;     /* query rows of one request; 0: max_rows */
  int64_t max_kv_len;     /* keys of one request's chain */
  int32_t num_levels;     /* 0: 1 */
  int32_t num_groups;     /* 1 .. FULMEN_MAX_GROUPS */
  int32_t num_sms;        /* workers the grid may use; 0: all of the context's */
  int32_t reserved;
  fulmen_attention_group groups[FULMEN_MAX_GROUPS];
} fulmen_attention_limits;

typedef struct fulmen_attention_sizes {
  size_t struct_size;
  uint64_t plan_bytes;    /* both are multiples of 256 and exact for the limits */
  uint64_t scratch_bytes;
} fulmen_attention_sizes;

/* One level: lengths on the context's device, or on the host. i32 | i64 throughout. On a CUDA context a tensor with
 * device = FULMEN_CPU is on the host: it is checked and copied during the call, may be overwritten after it, and is refused
 * while the stream is capturing. Both places may be mixed. */
typedef struct fulmen_attention_level {
  size_t struct_size;
  fulmen_tensor qo_indptr;     /* [num_segments + 1] rows that each segment spans; the last level's are the requests */
  fulmen_tensor kv_len;        /* [num_segments] keys of the segment; or absent and: */
  fulmen_tensor kv_page_indptr;/* [num_segments + 1] pages, with */
  fulmen_tensor last_page_len; /* [num_segments] 1 .. page_size: length = (pages - 1) page_size + last; 0 without pages */
} fulmen_attention_level;

typedef struct fulmen_attention_lengths {
  size_t struct_size;
  int32_t num_levels;    /* 0: 1 */
  int32_t page_size;     /* for kv_page_indptr */
  fulmen_attention_level levels[FULMEN_MAX_LEVELS];
} fulmen_attention_lengths;

typedef struct fulmen_rope_params {
  size_t struct_size;
  int32_t rotary_dim;    /* leading dims that rotate; 0: all */
  int32_t interleaved;   /* 0: pairs (d, d + rotary_dim / 2) (neox); 1: pairs (2d, 2d + 1) */
  int32_t scaling;       /* fulmen_rope_scaling */
  float theta;           /* 0: 10000 */
  float factor;          /* linear, llama31, yarn; 0: 1 */
  float low_freq_factor, high_freq_factor;        /* llama31 */
  float beta_fast, beta_slow, attention_factor;   /* yarn; 0: 32, 1, 0.1 ln(factor) + 1 */
  int32_t original_context;                       /* llama31, yarn */
} fulmen_rope_params;

typedef enum fulmen_rope_scaling {
  FULMEN_ROPE_NONE = 0,
  FULMEN_ROPE_LINEAR = 1,
  FULMEN_ROPE_LLAMA31 = 2,
  FULMEN_ROPE_YARN = 3
} fulmen_rope_scaling;

typedef struct fulmen_attention_tensors {
  size_t struct_size;
  int32_t group;         /* which of limits.groups this layer is */
  int32_t page_size;     /* keys per page; ignored for ragged KV */
  fulmen_tensor q;       /* q_dtype  [num_rows, num_qo_heads, head_dim_qk] */
  fulmen_tensor k;       /* kv_dtype [num_pages, page_size, num_kv_heads, head_dim_qk], HND by strides; ragged: 3-D */
  fulmen_tensor v;       /* kv_dtype [num_pages, page_size, num_kv_heads, head_dim_vo] */
  fulmen_tensor o;       /* o_dtype  [num_rows, num_qo_heads, head_dim_vo] */
  fulmen_tensor lse;     /* f32 [num_rows, num_qo_heads], absent: not wanted */
  fulmen_kv_table kv[FULMEN_MAX_LEVELS];  /* a table per level */
  fulmen_kv_table v_table[FULMEN_MAX_LEVELS]; /* where V's pages differ from K's; absent: the same */
  float sm_scale;        /* 0: 1 / sqrt(head_dim_qk) */
  float logits_soft_cap; /* > 0 with FULMEN_ATTENTION_SOFT_CAP */
  fulmen_tensor alibi_slopes; /* f32 [num_qo_heads] */
  fulmen_tensor sinks;        /* f32 [num_qo_heads] */
  fulmen_tensor mask;         /* u8, little-endian bits, 1 = visible; request r's row-major [qo_len, kv_len] bits start */
  fulmen_tensor mask_indptr;  /* at byte mask_indptr[r]; i32 | i64 [num_requests + 1] */
  fulmen_rope_params rope;
  const void* variant_params; /* a user's variant: its Params, copied */
  size_t variant_params_bytes;
  float o_scale;         /* o is multiplied by it in fp32, before it is rounded; 0: 1 */
  int32_t lse_base2;     /* 1: lse[i] = log2 sum_j exp(s[i, j]); 0: the natural logarithm */
} fulmen_attention_tensors;

typedef struct fulmen_attention fulmen_attention;

/* May compile; on success the handle is immutable. */
FULMEN_API fulmen_status fulmen_attention_create(fulmen_context* context, const fulmen_attention_spec* spec,
                                                 const fulmen_attention_limits* limits, fulmen_attention** attention);
FULMEN_API void fulmen_attention_destroy(fulmen_attention* attention);
FULMEN_API fulmen_status fulmen_attention_sizes_of(const fulmen_attention* attention, fulmen_attention_sizes* sizes);
/* Once for a scratch memory, before its first run; every run leaves it as it was. */
FULMEN_API fulmen_status fulmen_scratch_init(fulmen_context* context, void* scratch, uint64_t bytes, fulmen_stream stream);
/* Writes plan_mem: the schedule of all groups. Once per step; any number of runs may read it. */
FULMEN_API fulmen_status fulmen_attention_plan(const fulmen_attention* attention, const fulmen_attention_lengths* lengths,
                                               void* plan_mem, fulmen_stream stream);
/* Reads plan_mem, owns scratch until it ends. Once per layer. */
FULMEN_API fulmen_status fulmen_attention_run(const fulmen_attention* attention, const fulmen_attention_tensors* tensors,
                                              const void* plan_mem, void* scratch, fulmen_stream stream);

/* The first fault that plan or a kernel found in data that only the device holds. It stands at the head of plan_mem. */
typedef enum fulmen_fault {
  FULMEN_FAULT_NONE = 0,
  FULMEN_FAULT_QO_INDPTR = 1,  /* negative, decreasing or beyond the limits */
  FULMEN_FAULT_KV_LEN = 2,
  FULMEN_FAULT_PAGE = 3,       /* a page id outside the pool */
  FULMEN_FAULT_POSITION = 4,
  FULMEN_FAULT_SAMPLING = 5
} fulmen_fault;
typedef struct fulmen_status_record {
  int32_t fault;    /* fulmen_fault */
  int32_t request;
  int64_t value;
  int64_t limit;
  int64_t level;
} fulmen_status_record;

/* ------------------------------------------------------------------------------------------ append
 * Copies k[t], v[t] into the paged cache. Either by slot (slot_mapping: i64 [num_tokens], slot = page * page_size +
 * offset, negative: skip), or by request: rows qo_indptr[r] .. go to positions kv_len[r] - n .. kv_len[r] - 1. */
typedef struct fulmen_append_kv_args {
  size_t struct_size;
  fulmen_tensor k;        /* [num_tokens, num_kv_heads, head_dim_qk] f32 | f16 | bf16 */
  fulmen_tensor v;        /* [num_tokens, num_kv_heads, head_dim_vo] */
  fulmen_tensor k_cache;  /* [num_pages, page_size, num_kv_heads, head_dim_qk], same dtype, any strides; last stride 1 */
  fulmen_tensor v_cache;
  fulmen_tensor slot_mapping;
  fulmen_tensor qo_indptr;
  fulmen_tensor kv_len;        /* or kv_page_indptr (the table's indptr) + last_page_len */
  fulmen_tensor last_page_len;
  fulmen_kv_table table;
} fulmen_append_kv_args;
FULMEN_API fulmen_status fulmen_append_kv(fulmen_context* context, const fulmen_append_kv_args* args, fulmen_stream stream);

/* ------------------------------------------------------------------------------------------ merge
 * o[r,h,:] = sum_p exp(part_lse[p,r,h] - lse[r,h]) part_o[p,r,h,:], parts in index order. */
typedef struct fulmen_merge_states_args {
  size_t struct_size;
  fulmen_tensor part_o;    /* f32 | f16 | bf16 [num_parts, num_rows, num_heads, head_dim] */
  fulmen_tensor part_lse;  /* f32 [num_parts, num_rows, num_heads], -inf: empty part */
  fulmen_tensor o;         /* part_o's dtype [num_rows, num_heads, head_dim] */
  fulmen_tensor lse;       /* f32 [num_rows, num_heads], may be absent */
  int32_t lse_base2;       /* 1: every lse is in base 2 */
} fulmen_merge_states_args;
FULMEN_API fulmen_status fulmen_merge_states(fulmen_context* context, const fulmen_merge_states_args* args,
                                             fulmen_stream stream);

typedef struct fulmen_merge_state_args { /* two states that lie in tensors of their own; o and lse may be those of a or b */
  size_t struct_size;
  fulmen_tensor o_a, lse_a, o_b, lse_b; /* [num_rows, num_heads, head_dim], f32 [num_rows, num_heads] */
  fulmen_tensor o, lse;
  int32_t lse_base2;                    /* 1: every lse is in base 2 */
} fulmen_merge_state_args;
FULMEN_API fulmen_status fulmen_merge_state(fulmen_context* context, const fulmen_merge_state_args* args,
                                            fulmen_stream stream);

/* ------------------------------------------------------------------------------------------ RoPE */
typedef struct fulmen_rope_args {
  size_t struct_size;
  fulmen_tensor q, k;          /* [num_tokens, num_heads, head_dim]; k may be absent */
  fulmen_tensor q_out, k_out;  /* absent: in place */
  fulmen_tensor positions;     /* i32 | i64 [num_tokens] */
  fulmen_tensor cos_sin_cache; /* f32 [max_position, rotary_dim]: cos in the first half, sin in the second; overrides params */
  fulmen_rope_params params;
} fulmen_rope_args;
FULMEN_API fulmen_status fulmen_rope(fulmen_context* context, const fulmen_rope_args* args, fulmen_stream stream);

/* rope and append_kv of the same tokens in one pass: k is rotated on its way into the cache and isn't written anywhere
 * else. Slots, requests and tables as in fulmen_append_kv_args. CUDA: positions, slots, lengths and tables are read before the
 * call ahead has ended, so they must not be the output of a Fulmen op just ahead. */
typedef struct fulmen_rope_append_args {
  size_t struct_size;
  fulmen_tensor q, k, v;       /* [num_tokens, num_heads, head_dim], one dtype */
  fulmen_tensor q_out;         /* absent: in place */
  fulmen_tensor positions;     /* i32 | i64 [num_tokens] */
  fulmen_tensor cos_sin_cache;
  fulmen_rope_params params;
  fulmen_tensor k_cache, v_cache;
  fulmen_tensor slot_mapping;
  fulmen_tensor qo_indptr, kv_len, last_page_len;
  fulmen_kv_table table;
} fulmen_rope_append_args;
FULMEN_API fulmen_status fulmen_rope_append(fulmen_context* context, const fulmen_rope_append_args* args,
                                            fulmen_stream stream);

/* ------------------------------------------------------------------------------------------ linear
 * y = f(s x w^T + bias) + residual: the linear layer of a decode step, whose few rows leave nothing to do but to read w.
 * s is 1 / sqrt(mean(x^2) + rms_eps) of the row where rms_eps > 0 (an RMSNorm in front, whose weight is in w's columns),
 * else 1. f: the identity, or with `gated` act(first half of the outputs) * second half. Sums in fp32, each output in one
 * fixed order: a row's result doesn't depend on the other rows. CUDA: at most 16 rows, k a multiple of 8; more rows are a
 * matrix product's; and w is read before the call ahead has ended, so it must not be the output of a Fulmen op just ahead. */
typedef struct fulmen_linear_args {
  size_t struct_size;
  fulmen_tensor x;        /* f16 | bf16 [num_rows, k] */
  fulmen_tensor w;        /* x's dtype [n, k] */
  fulmen_tensor bias;     /* x's dtype [n], may be absent */
  fulmen_tensor residual; /* x's dtype [num_rows, width], may be absent, may be y itself */
  fulmen_tensor y;        /* x's dtype, or f32 where not gated, [num_rows, width]; width = n, gated: n / 2 */
  int32_t gated;
  int32_t activation;     /* fulmen_activation, where gated */
  float rms_eps;
  float reserved;
} fulmen_linear_args;
FULMEN_API fulmen_status fulmen_linear(fulmen_context* context, const fulmen_linear_args* args, fulmen_stream stream);

/* ------------------------------------------------------------------------------------------ norms
 * out = x / sqrt(mean(x^2) + eps) * (weight + weight_offset). With residual: residual += x first, and residual is
 * what is normalised. Gemma: weight_offset = 1. x may be [num_tokens, hidden] or [num_tokens, num_heads, head_dim]. */
typedef struct fulmen_rms_norm_args {
  size_t struct_size;
  fulmen_tensor x;
  fulmen_tensor weight;   /* [hidden], x's dtype or f32 */
  fulmen_tensor residual; /* read and written; may be absent */
  fulmen_tensor out;      /* may alias x */
  float eps;
  float weight_offset;
} fulmen_rms_norm_args;
FULMEN_API fulmen_status fulmen_rms_norm(fulmen_context* context, const fulmen_rms_norm_args* args, fulmen_stream stream);

typedef struct fulmen_layer_norm_args { /* (x - mean) / sqrt(var + eps) * weight + bias */
  size_t struct_size;
  fulmen_tensor x, weight, bias, out; /* bias may be absent */
  float eps;
  float reserved;
} fulmen_layer_norm_args;
FULMEN_API fulmen_status fulmen_layer_norm(fulmen_context* context, const fulmen_layer_norm_args* args,
                                           fulmen_stream stream);

/* ------------------------------------------------------------------------------------------ gated activation */
typedef enum fulmen_activation { FULMEN_SILU = 0, FULMEN_GELU = 1, FULMEN_GELU_TANH = 2 } fulmen_activation;
typedef struct fulmen_act_and_mul_args { /* out = act(x[:, :d]) * x[:, d:] */
  size_t struct_size;
  fulmen_tensor x;   /* [num_tokens, 2 d] */
  fulmen_tensor out; /* [num_tokens, d] */
  int32_t activation;
  int32_t reserved;
} fulmen_act_and_mul_args;
FULMEN_API fulmen_status fulmen_act_and_mul(fulmen_context* context, const fulmen_act_and_mul_args* args,
                                            fulmen_stream stream);

/* ------------------------------------------------------------------------------------------ sampling
 * A row's parameters come from tensors ([num_rows]) where given, else from the scalars. temperature 0 means argmax.
 * top_k <= 0 or >= vocab, top_p >= 1 and min_p <= 0 filter nothing. Ties are broken by the lowest index.
 * The same seed and offset draw the same word on every back end (Philox4x32-10, 64-bit fixed-point masses). */
typedef enum fulmen_filter_order {
  FULMEN_FILTER_SEQUENTIAL = 0, /* top-k, renormalise, then top-p on what is left, then min-p */
  FULMEN_FILTER_JOINT = 1       /* each filter judges the unfiltered distribution; a word must pass all */
} fulmen_filter_order;

typedef struct fulmen_filter_params {
  size_t struct_size;
  float temperature;   /* > 0, or 0 for argmax (in fulmen_sample), applied to logits only */
  int32_t top_k;
  float top_p;
  float min_p;
  int32_t order;       /* fulmen_filter_order */
  int32_t reserved;
  fulmen_tensor temperatures; /* f32 [num_rows] */
  fulmen_tensor top_ks;       /* i32 [num_rows] */
  fulmen_tensor top_ps;       /* f32 [num_rows] */
  fulmen_tensor min_ps;       /* f32 [num_rows] */
} fulmen_filter_params;

typedef struct fulmen_softmax_args {
  size_t struct_size;
  fulmen_tensor logits;       /* f32 | f16 | bf16 [num_rows, vocab] */
  fulmen_tensor probs;        /* f32 [num_rows, vocab], may alias logits */
  float temperature;          /* 0: 1 */
  float reserved;
  fulmen_tensor temperatures; /* f32 [num_rows] */
} fulmen_softmax_args;
FULMEN_API fulmen_status fulmen_softmax(fulmen_context* context, const fulmen_softmax_args* args, fulmen_stream stream);

typedef struct fulmen_argmax_args {
  size_t struct_size;
  fulmen_tensor x;     /* [num_rows, n] */
  fulmen_tensor index; /* i32 [num_rows]; -1 for a row with NaN */
} fulmen_argmax_args;
FULMEN_API fulmen_status fulmen_argmax(fulmen_context* context, const fulmen_argmax_args* args, fulmen_stream stream);

typedef struct fulmen_sample_args {
  size_t struct_size;
  fulmen_tensor input;    /* f32 | f16 | bf16 [num_rows, vocab]: logits, or probabilities (f32) */
  int32_t input_is_probs;
  int32_t reserved;
  fulmen_filter_params filter;
  uint64_t seed, offset;
  fulmen_tensor seeds;    /* u64 | i64 [num_rows], override seed */
  fulmen_tensor offsets;  /* u64 | i64 [num_rows], override offset; a request's position, say */
  fulmen_tensor row_ids;  /* i32 [num_rows] into input: samples several draws of one row; absent: identity */
  fulmen_tensor tokens;   /* i32 [num_rows], -1 for a bad row (NaN, or parameters out of range) */
  fulmen_tensor logprob;  /* f32 [num_rows], of the unfiltered distribution; may be absent */
} fulmen_sample_args;
FULMEN_API fulmen_status fulmen_sample(fulmen_context* context, const fulmen_sample_args* args, fulmen_stream stream);

/* The filtered distribution itself: renormalised probabilities, or logits with -inf outside. */
typedef struct fulmen_filter_args {
  size_t struct_size;
  fulmen_tensor input;   /* as in fulmen_sample_args */
  int32_t input_is_probs;
  int32_t output_is_logits; /* 1: masked logits (input must be logits) */
  fulmen_filter_params filter;
  fulmen_tensor output;  /* f32 [num_rows, vocab], may alias an f32 input */
} fulmen_filter_args;
FULMEN_API fulmen_status fulmen_filter(fulmen_context* context, const fulmen_filter_args* args, fulmen_stream stream);

typedef struct fulmen_top_k_args {
  size_t struct_size;
  fulmen_tensor x;       /* f32 | f16 | bf16 [num_rows, n] */
  fulmen_tensor values;  /* x's dtype [num_rows, k], descending, ties by lowest index */
  fulmen_tensor indices; /* i32 [num_rows, k] */
} fulmen_top_k_args;
FULMEN_API fulmen_status fulmen_top_k(fulmen_context* context, const fulmen_top_k_args* args, fulmen_stream stream);

/* ------------------------------------------------------------------------------------------ what runs where */
typedef enum fulmen_op {
  FULMEN_OP_ATTENTION = 0,
  FULMEN_OP_APPEND_KV = 1,
  FULMEN_OP_MERGE_STATES = 2,
  FULMEN_OP_ROPE = 3,
  FULMEN_OP_RMS_NORM = 4,
  FULMEN_OP_LAYER_NORM = 5,
  FULMEN_OP_ACT_AND_MUL = 6,
  FULMEN_OP_SOFTMAX = 7,
  FULMEN_OP_ARGMAX = 8,
  FULMEN_OP_SAMPLE = 9,
  FULMEN_OP_FILTER = 10,
  FULMEN_OP_TOP_K = 11,
  FULMEN_OP_ROPE_APPEND = 12,
  FULMEN_OP_LINEAR = 13,
  FULMEN_OP_COUNT = 14
} fulmen_op;

typedef struct fulmen_op_spec {
  size_t struct_size;
  int32_t op;     /* fulmen_op */
  int32_t dtype;  /* of the op's main input; attention: unused */
  const fulmen_attention_spec* attention;     /* attention only */
  const fulmen_attention_limits* limits;      /* attention, may be NULL */
} fulmen_op_spec;

FULMEN_API const char* fulmen_op_name(fulmen_op op);
/* target: "cpu", "cuda" (this machine's device 0), or a name such as "sm_80", "sm_90a". Never initialises CUDA for a
 * named target. FULMEN_OK, or FULMEN_UNSUPPORTED with the missing piece in fulmen_last_error(). */
FULMEN_API fulmen_status fulmen_supports(const char* target, const fulmen_op_spec* spec);
/* JSON: kernel, tile, workers, cost, and why the alternatives were refused. Free with fulmen_string_free. */
FULMEN_API fulmen_status fulmen_explain(const char* target, const fulmen_op_spec* spec, char** json);

typedef void (*fulmen_progress_fn)(void* user, int32_t done, int32_t total, const char* kernel, double seconds);
/* Compiles (or finds in the cache) all that the specs need, in parallel, and loads it. */
FULMEN_API fulmen_status fulmen_prepare(fulmen_context* context, const fulmen_op_spec* specs, int32_t num_specs,
                                        fulmen_progress_fn progress, void* user);
/* The same for a machine that isn't this one: fills the cache for a named target, with NVRTC but without a driver or a
 * GPU. num_specs = 0: every kernel that Fulmen ships. options gives cache_dir, nvrtc_path and kernels_dir; may be NULL. */
FULMEN_API fulmen_status fulmen_prepare_target(const char* target, const fulmen_context_options* options,
                                               const fulmen_op_spec* specs, int32_t num_specs,
                                               fulmen_progress_fn progress, void* user);
/* After this a call on the context that would have to compile returns FULMEN_NOT_PREPARED. */
FULMEN_API fulmen_status fulmen_seal(fulmen_context* context);
/* JSON: version, CPU threads and SIMD target, GPUs, NVRTC candidates with path, version and reason, cache directory,
 * and which dtypes each op runs in on each back end. Initialises CUDA. */
FULMEN_API fulmen_status fulmen_info(char** json);
/* JSON: the kernels that fulmen_prepare_target would make, a row {"op", "kernel", "config", "sources", "cached"} for each.
 * sources: a digest of the files it is compiled from; cached: it is in the cache directory. Compiles nothing. */
FULMEN_API fulmen_status fulmen_prepare_list(const char* target, const fulmen_context_options* options,
                                             const fulmen_op_spec* specs, int32_t num_specs, char** json);
/* JSON: what a context has done: "compiles", "disk_hits", "memory_hits" (kernels compiled, read from the cache directory,
 * found in memory), "sealed", "launches", and "bytes_from_device" that this process copied to the host through Fulmen. */
FULMEN_API fulmen_status fulmen_context_stats(fulmen_context* context, char** json);

#ifdef __cplusplus
}
#endif
#endif /* FULMEN_H_ */
