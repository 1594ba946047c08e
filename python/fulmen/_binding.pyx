# cython: language_level=3, binding=False, embedsignature=True
"""The binding: tensors and arguments in, the C ABI called, errors out. Names and defaults stand in ops.py."""
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset


cdef extern from "_dlpack.h":
    ctypedef struct DLDevice:
        int32_t device_type
        int32_t device_id
    ctypedef struct DLDataType:
        uint8_t code
        uint8_t bits
        uint16_t lanes
    ctypedef struct DLTensor:
        void* data
        DLDevice device
        int32_t ndim
        DLDataType dtype
        int64_t* shape
        int64_t* strides
        uint64_t byte_offset
    ctypedef struct DLManagedTensor:
        DLTensor dl_tensor
    ctypedef struct DLPackExchangeAPIHeader:
        uint32_t major
        uint32_t minor
    ctypedef struct DLPackExchangeAPI:
        DLPackExchangeAPIHeader header
        int (*dltensor_from_py_object_no_sync)(void*, DLTensor*) except -1
        int (*current_work_stream)(int32_t, int32_t, void**) except -1


cdef extern from "fulmen/fulmen.h" nogil:
    ctypedef int fulmen_status
    enum: FULMEN_OK
    enum: FULMEN_MAX_DIMS
    ctypedef void* fulmen_stream
    ctypedef struct fulmen_context:
        pass
    ctypedef struct fulmen_attention:
        pass
    ctypedef struct fulmen_tensor:
        void* data
        int32_t dtype
        int32_t ndim
        int32_t device
        int64_t* shape
        int64_t* stride
    ctypedef struct fulmen_kv_table:
        size_t struct_size
        fulmen_tensor table
        fulmen_tensor indptr
        fulmen_tensor row_index
    ctypedef struct fulmen_context_options:
        size_t struct_size
        int32_t device_type
        int32_t device_index
        int32_t num_threads
        const char* cache_dir
        const char* nvrtc_path
        const char* kernels_dir
    ctypedef struct fulmen_attention_spec:
        size_t struct_size
        int32_t q_dtype
        int32_t kv_dtype
        int32_t o_dtype
        int32_t head_dim_qk
        int32_t head_dim_vo
        uint32_t features
        int32_t batch_invariant
    ctypedef struct fulmen_attention_group:
        size_t struct_size
        int32_t num_qo_heads
        int32_t num_kv_heads
        int32_t causal
        int32_t window_left
    ctypedef struct fulmen_attention_limits:
        size_t struct_size
        int64_t max_requests
        int64_t max_rows
        int64_t max_qo_len
        int64_t max_kv_len
        int32_t num_levels
        int32_t num_groups
        int32_t num_sms
        fulmen_attention_group* groups
    ctypedef struct fulmen_attention_sizes:
        size_t struct_size
        uint64_t plan_bytes
        uint64_t scratch_bytes
    ctypedef struct fulmen_attention_level:
        size_t struct_size
        fulmen_tensor qo_indptr
        fulmen_tensor kv_len
        fulmen_tensor kv_page_indptr
        fulmen_tensor last_page_len
    ctypedef struct fulmen_attention_lengths:
        size_t struct_size
        int32_t num_levels
        int32_t page_size
        fulmen_attention_level* levels
    ctypedef struct fulmen_rope_params:
        size_t struct_size
        int32_t rotary_dim
        int32_t interleaved
        int32_t scaling
        float theta
        float factor
        float low_freq_factor
        float high_freq_factor
        float beta_fast
        float beta_slow
        float attention_factor
        int32_t original_context
    ctypedef struct fulmen_attention_tensors:
        size_t struct_size
        int32_t group
        int32_t page_size
        fulmen_tensor q
        fulmen_tensor k
        fulmen_tensor v
        fulmen_tensor o
        fulmen_tensor lse
        fulmen_kv_table* kv
        fulmen_kv_table* v_table
        float sm_scale
        float logits_soft_cap
        fulmen_tensor alibi_slopes
        fulmen_tensor sinks
        fulmen_tensor mask
        fulmen_tensor mask_indptr
        fulmen_rope_params rope
    ctypedef struct fulmen_append_kv_args:
        size_t struct_size
        fulmen_tensor k
        fulmen_tensor v
        fulmen_tensor k_cache
        fulmen_tensor v_cache
        fulmen_tensor slot_mapping
        fulmen_tensor qo_indptr
        fulmen_tensor kv_len
        fulmen_tensor last_page_len
        fulmen_kv_table table
    ctypedef struct fulmen_merge_states_args:
        size_t struct_size
        fulmen_tensor part_o
        fulmen_tensor part_lse
        fulmen_tensor o
        fulmen_tensor lse
    ctypedef struct fulmen_merge_state_args:
        size_t struct_size
        fulmen_tensor o_a
        fulmen_tensor lse_a
        fulmen_tensor o_b
        fulmen_tensor lse_b
        fulmen_tensor o
        fulmen_tensor lse
    ctypedef struct fulmen_rope_args:
        size_t struct_size
        fulmen_tensor q
        fulmen_tensor k
        fulmen_tensor q_out
        fulmen_tensor k_out
        fulmen_tensor positions
        fulmen_tensor cos_sin_cache
        fulmen_rope_params params
    ctypedef struct fulmen_rope_append_args:
        size_t struct_size
        fulmen_tensor q
        fulmen_tensor k
        fulmen_tensor v
        fulmen_tensor q_out
        fulmen_tensor positions
        fulmen_tensor cos_sin_cache
        fulmen_rope_params params
        fulmen_tensor k_cache
        fulmen_tensor v_cache
        fulmen_tensor slot_mapping
        fulmen_tensor qo_indptr
        fulmen_tensor kv_len
        fulmen_tensor last_page_len
        fulmen_kv_table table
    ctypedef struct fulmen_rms_norm_args:
        size_t struct_size
        fulmen_tensor x
        fulmen_tensor weight
        fulmen_tensor residual
        fulmen_tensor out
        float eps
        float weight_offset
    ctypedef struct fulmen_layer_norm_args:
        size_t struct_size
        fulmen_tensor x
        fulmen_tensor weight
        fulmen_tensor bias
        fulmen_tensor out
        float eps
    ctypedef struct fulmen_act_and_mul_args:
        size_t struct_size
        fulmen_tensor x
        fulmen_tensor out
        int32_t activation
    ctypedef struct fulmen_filter_params:
        size_t struct_size
        float temperature
        int32_t top_k
        float top_p
        float min_p
        int32_t order
        fulmen_tensor temperatures
        fulmen_tensor top_ks
        fulmen_tensor top_ps
        fulmen_tensor min_ps
    ctypedef struct fulmen_softmax_args:
        size_t struct_size
        fulmen_tensor logits
        fulmen_tensor probs
        float temperature
        fulmen_tensor temperatures
    ctypedef struct fulmen_argmax_args:
        size_t struct_size
        fulmen_tensor x
        fulmen_tensor index
    ctypedef struct fulmen_sample_args:
        size_t struct_size
        fulmen_tensor input
        int32_t input_is_probs
        fulmen_filter_params filter
        uint64_t seed
        uint64_t offset
        fulmen_tensor seeds
        fulmen_tensor offsets
        fulmen_tensor row_ids
        fulmen_tensor tokens
        fulmen_tensor logprob
    ctypedef struct fulmen_filter_args:
        size_t struct_size
        fulmen_tensor input
        int32_t input_is_probs
        int32_t output_is_logits
        fulmen_filter_params filter
        fulmen_tensor output
    ctypedef struct fulmen_top_k_args:
        size_t struct_size
        fulmen_tensor x
        fulmen_tensor values
        fulmen_tensor indices
    ctypedef struct fulmen_op_spec:
        size_t struct_size
        int32_t op
        int32_t dtype
        const fulmen_attention_spec* attention
        const fulmen_attention_limits* limits

    const char* fulmen_version()
    const char* fulmen_status_name(fulmen_status)
    const char* fulmen_last_error()
    const char* fulmen_op_name(int)
    void fulmen_string_free(char*)
    fulmen_status fulmen_context_create(const fulmen_context_options*, fulmen_context**)
    void fulmen_context_destroy(fulmen_context*)
    int32_t fulmen_context_num_workers(const fulmen_context*)
    fulmen_status fulmen_seal(fulmen_context*)
    fulmen_status fulmen_scratch_init(fulmen_context*, void*, uint64_t, fulmen_stream)
    fulmen_status fulmen_attention_create(fulmen_context*, const fulmen_attention_spec*, const fulmen_attention_limits*, fulmen_attention**)
    void fulmen_attention_destroy(fulmen_attention*)
    fulmen_status fulmen_attention_sizes_of(const fulmen_attention*, fulmen_attention_sizes*)
    fulmen_status fulmen_attention_plan(const fulmen_attention*, const fulmen_attention_lengths*, void*, fulmen_stream)
    fulmen_status fulmen_attention_run(const fulmen_attention*, const fulmen_attention_tensors*, const void*, void*, fulmen_stream)
    fulmen_status fulmen_append_kv(fulmen_context*, const fulmen_append_kv_args*, fulmen_stream)
    fulmen_status fulmen_merge_states(fulmen_context*, const fulmen_merge_states_args*, fulmen_stream)
    fulmen_status fulmen_merge_state(fulmen_context*, const fulmen_merge_state_args*, fulmen_stream)
    fulmen_status fulmen_rope(fulmen_context*, const fulmen_rope_args*, fulmen_stream)
    fulmen_status fulmen_rope_append(fulmen_context*, const fulmen_rope_append_args*, fulmen_stream)
    fulmen_status fulmen_rms_norm(fulmen_context*, const fulmen_rms_norm_args*, fulmen_stream)
    fulmen_status fulmen_layer_norm(fulmen_context*, const fulmen_layer_norm_args*, fulmen_stream)
    fulmen_status fulmen_act_and_mul(fulmen_context*, const fulmen_act_and_mul_args*, fulmen_stream)
    fulmen_status fulmen_softmax(fulmen_context*, const fulmen_softmax_args*, fulmen_stream)
    fulmen_status fulmen_argmax(fulmen_context*, const fulmen_argmax_args*, fulmen_stream)
    fulmen_status fulmen_sample(fulmen_context*, const fulmen_sample_args*, fulmen_stream)
    fulmen_status fulmen_filter(fulmen_context*, const fulmen_filter_args*, fulmen_stream)
    fulmen_status fulmen_top_k(fulmen_context*, const fulmen_top_k_args*, fulmen_stream)
    fulmen_status fulmen_supports(const char*, const fulmen_op_spec*)
    fulmen_status fulmen_explain(const char*, const fulmen_op_spec*, char**)
    fulmen_status fulmen_info(char**)
    ctypedef void (*fulmen_progress_fn)(void*, int32_t, int32_t, const char*, double) noexcept
    fulmen_status fulmen_prepare(fulmen_context*, const fulmen_op_spec*, int32_t, fulmen_progress_fn, void*)
    fulmen_status fulmen_prepare_target(const char*, const fulmen_context_options*, const fulmen_op_spec*, int32_t,
                                        fulmen_progress_fn, void*)


# ---------------------------------------------------------------------------------------------- errors
class FulmenError(RuntimeError):
    """A call that Fulmen refused: `status` names the kind, the text names the argument, what was expected and found."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class InvalidArgument(FulmenError, ValueError):
    """Shapes, dtypes, strides, devices or values that don't fit."""


class Unsupported(FulmenError, NotImplementedError):
    """Well formed, but `supports` says no."""


cdef int check(fulmen_status status) except -1:
    if status == FULMEN_OK:
        return 0
    text = (<bytes>fulmen_last_error()).decode("utf-8", "replace")
    name = (<bytes>fulmen_status_name(status)).decode()
    kind = {"invalid_argument": InvalidArgument, "unsupported": Unsupported}.get(name, FulmenError)
    raise kind(name, text)


# ---------------------------------------------------------------------------------------------- tensors
cdef dict DTYPES = {"f32": 0, "f16": 1, "bf16": 2, "f8_e4m3": 3, "f8_e5m2": 4, "i32": 5, "i64": 6, "u8": 7, "u32": 8, "u64": 9}

cdef int dtype_of(DLDataType t) except -1:
    # DLPack's type codes: 0 int, 1 uint, 2 float, 4 bfloat, 6 bool
    if t.lanes == 1:
        if t.code == 2 and t.bits == 32: return 0
        if t.code == 2 and t.bits == 16: return 1
        if t.code == 4 and t.bits == 16: return 2
        if t.code == 0 and t.bits == 32: return 5
        if t.code == 0 and t.bits == 64: return 6
        if (t.code == 1 or t.code == 6) and t.bits == 8: return 7
        if t.code == 1 and t.bits == 32: return 8
        if t.code == 1 and t.bits == 64: return 9
    raise TypeError(f"tensor: expected f32, f16, bf16, i32, i64, u8, u32 or u64, found DLPack code {t.code} with {t.bits} bits")


cdef class Typed:
    """A tensor whose dtype its framework can't name: `Typed(numpy_uint16_array, "bf16")`."""
    cdef readonly object tensor
    cdef readonly str dtype

    def __init__(self, tensor, str dtype):
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
        self.tensor, self.dtype = tensor, dtype


cdef class Call:
    """What a call keeps alive, and where its tensors lie."""
    cdef list keep
    cdef int device_type
    cdef int device_id

    def __cinit__(self):
        self.keep = []

    cdef int put(self, fulmen_tensor* to, object x) except -1:
        cdef DLTensor view
        cdef DLManagedTensor* managed
        cdef DLPackExchangeAPI* api
        cdef int i
        cdef int64_t stride = 1
        cdef int dtype = -1
        if x is None:
            return 0
        if isinstance(x, Typed):
            dtype = DTYPES[(<Typed>x).dtype]
            x = (<Typed>x).tensor
        exchange = getattr(type(x), "__dlpack_c_exchange_api__", None)
        api = NULL
        if exchange is not None and PyCapsule_IsValid(exchange, "dlpack_exchange_api"):
            api = <DLPackExchangeAPI*>PyCapsule_GetPointer(exchange, "dlpack_exchange_api")
            if api.header.major != 1 or api.dltensor_from_py_object_no_sync == NULL:
                api = NULL
        if api != NULL:
            api.dltensor_from_py_object_no_sync(<void*>x, &view)
            self.keep.append(x)
        else:
            export = getattr(x, "__dlpack__", None)
            if export is None:
                raise TypeError(f"tensor: expected an object with __dlpack__, found {type(x).__name__}")
            # -1: no synchronisation, the caller's stream orders the work; CPU exporters take None only.
            where = x.__dlpack_device__()
            capsule = export() if where[0] == 1 else export(stream=-1)
            managed = <DLManagedTensor*>PyCapsule_GetPointer(capsule, "dltensor")
            view = managed.dl_tensor
            self.keep.append(capsule)
        if view.ndim > FULMEN_MAX_DIMS:
            raise ValueError(f"tensor: expected at most {FULMEN_MAX_DIMS} dimensions, found {view.ndim}")
        to.data = <void*>(<uintptr_t>view.data + view.byte_offset)
        to.dtype = dtype if dtype >= 0 else dtype_of(view.dtype)
        # DLPack device types beside CPU and CUDA: 3 pinned host memory, 13 managed memory.
        to.device = 2 if view.device.device_type == 2 or view.device.device_type == 13 else 1
        if to.device == 2:
            self.device_type, self.device_id = 2, view.device.device_id
        to.ndim = view.ndim
        for i in range(view.ndim - 1, -1, -1):
            to.shape[i] = view.shape[i]
            to.stride[i] = view.strides[i] if view.strides != NULL else stride
            stride *= view.shape[i]
        return 0

    cdef int put_table(self, fulmen_kv_table* to, object table) except -1:
        """None, a 2-D tensor, or a dict with table, indptr, row_index."""
        to.struct_size = sizeof(fulmen_kv_table)
        if table is None:
            return 0
        if isinstance(table, dict):
            unknown = set(table) - {"table", "indptr", "row_index"}
            if unknown:
                raise TypeError(f"table: expected keys table, indptr, row_index, found {sorted(unknown)[0]!r}")
            self.put(&to.table, table.get("table"))
            self.put(&to.indptr, table.get("indptr"))
            self.put(&to.row_index, table.get("row_index"))
        else:
            self.put(&to.table, table)
        return 0


cdef int put_rope(fulmen_rope_params* to, dict p) except -1:
    to.struct_size = sizeof(fulmen_rope_params)
    if p is None:
        return 0
    for name in p:
        if name not in ROPE_MEMBERS:
            raise TypeError(f"rope: expected one of {', '.join(ROPE_MEMBERS)}, found {name!r}")
    to.rotary_dim = p.get("rotary_dim", 0)
    to.interleaved = p.get("interleaved", 0)
    scaling = p.get("scaling", "none")
    if scaling not in ROPE_SCALINGS:
        raise ValueError(f"rope: scaling: expected one of {', '.join(ROPE_SCALINGS)}, found {scaling!r}")
    to.scaling = ROPE_SCALINGS[scaling]
    to.theta = p.get("theta", 0.0)
    to.factor = p.get("factor", 0.0)
    to.low_freq_factor = p.get("low_freq_factor", 0.0)
    to.high_freq_factor = p.get("high_freq_factor", 0.0)
    to.beta_fast = p.get("beta_fast", 0.0)
    to.beta_slow = p.get("beta_slow", 0.0)
    to.attention_factor = p.get("attention_factor", 0.0)
    to.original_context = p.get("original_context", 0)
    return 0

cdef dict ROPE_SCALINGS = {"none": 0, "linear": 1, "llama31": 2, "yarn": 3}
cdef tuple ROPE_MEMBERS = ("rotary_dim", "interleaved", "scaling", "theta", "factor", "low_freq_factor", "high_freq_factor",
                           "beta_fast", "beta_slow", "attention_factor", "original_context")


cdef int put_filter(Call call, fulmen_filter_params* to, object temperature, object top_k, object top_p, object min_p,
                    bint joint) except -1:
    to.struct_size = sizeof(fulmen_filter_params)
    to.temperature, to.top_k, to.top_p, to.min_p = 1.0, 0, 1.0, 0.0
    to.order = 1 if joint else 0
    if isinstance(temperature, (int, float)): to.temperature = temperature
    else: call.put(&to.temperatures, temperature)
    if isinstance(top_k, int): to.top_k = top_k
    else: call.put(&to.top_ks, top_k)
    if isinstance(top_p, (int, float)): to.top_p = top_p
    else: call.put(&to.top_ps, top_p)
    if isinstance(min_p, (int, float)): to.min_p = min_p
    else: call.put(&to.min_ps, min_p)
    return 0


cdef fulmen_stream stream_of(object stream) except? NULL:
    return <fulmen_stream><uintptr_t>(0 if stream is None else int(stream))


# ---------------------------------------------------------------------------------------------- context
cdef class Context:
    cdef fulmen_context* handle
    cdef readonly str device
    cdef readonly int device_index

    def __cinit__(self, str device="cpu", int device_index=0, *, int num_threads=0, cache_dir=None, nvrtc_path=None,
                  kernels_dir=None):
        if device not in ("cpu", "cuda"):
            raise InvalidArgument("invalid_argument", f"Context: device: expected 'cpu' or 'cuda', found {device!r}")
        cdef fulmen_context_options o
        memset(&o, 0, sizeof(o))
        o.struct_size = sizeof(o)
        o.device_type = 1 if device == "cpu" else 2
        o.device_index = device_index
        o.num_threads = num_threads
        texts = [None if t is None else str(t).encode() for t in (cache_dir, nvrtc_path, kernels_dir)]
        if texts[0] is not None: o.cache_dir = texts[0]
        if texts[1] is not None: o.nvrtc_path = texts[1]
        if texts[2] is not None: o.kernels_dir = texts[2]
        self.device, self.device_index = device, device_index
        check(fulmen_context_create(&o, &self.handle))

    def __dealloc__(self):
        if self.handle != NULL:
            fulmen_context_destroy(self.handle)

    @property
    def num_workers(self):
        return fulmen_context_num_workers(self.handle)

    def seal(self):
        check(fulmen_seal(self.handle))

    def scratch_init(self, scratch, stream=None):
        cdef Call call = Call()
        cdef fulmen_tensor t
        memset(&t, 0, sizeof(t))
        call.put(&t, scratch)
        cdef uint64_t nbytes = byte_count(&t)
        cdef fulmen_stream s = stream_of(stream)
        check(fulmen_scratch_init(self.handle, t.data, nbytes, s))

    def __repr__(self):
        return f"fulmen.Context({self.device!r}, {self.device_index}, workers={self.num_workers})"


cdef uint64_t byte_count(fulmen_tensor* t):
    cdef uint64_t n = 1
    cdef int i
    for i in range(t.ndim):
        n *= <uint64_t>t.shape[i]
    if t.dtype in (0, 5, 8): return n * 4
    if t.dtype in (1, 2): return n * 2
    if t.dtype in (6, 9): return n * 8
    return n


# ---------------------------------------------------------------------------------------------- attention
cdef dict FEATURES = {"soft_cap": 1, "alibi": 2, "sinks": 4, "rope": 8, "custom_mask": 16, "no_softmax": 32}


cdef int put_spec(fulmen_attention_spec* s, dict spec) except -1:
    memset(s, 0, sizeof(fulmen_attention_spec))
    s.struct_size = sizeof(fulmen_attention_spec)
    s.q_dtype = DTYPES[spec["q_dtype"]]
    s.kv_dtype = DTYPES[spec.get("kv_dtype") or spec["q_dtype"]]
    s.o_dtype = DTYPES[spec.get("o_dtype") or spec["q_dtype"]]
    s.head_dim_qk = spec["head_dim_qk"]
    s.head_dim_vo = spec.get("head_dim_vo") or spec["head_dim_qk"]
    for feature in spec.get("features", ()):
        if feature not in FEATURES:
            raise ValueError(f"features: expected some of {', '.join(FEATURES)}, found {feature!r}")
        s.features |= <uint32_t>FEATURES[feature]
    s.batch_invariant = 1 if spec.get("batch_invariant") else 0
    return 0


cdef int put_limits(fulmen_attention_limits* l, dict limits) except -1:
    memset(l, 0, sizeof(fulmen_attention_limits))
    l.struct_size = sizeof(fulmen_attention_limits)
    l.max_requests = limits["max_requests"]
    l.max_rows = limits["max_rows"]
    l.max_qo_len = limits.get("max_qo_len", 0)
    l.max_kv_len = limits["max_kv_len"]
    l.num_levels = limits.get("num_levels", 1)
    l.num_sms = limits.get("num_sms", 0)
    groups = limits["groups"]
    if len(groups) > 8:
        raise ValueError(f"limits: groups: expected at most 8, found {len(groups)}")
    l.num_groups = len(groups)
    for i, g in enumerate(groups):
        l.groups[i].struct_size = sizeof(fulmen_attention_group)
        l.groups[i].num_qo_heads, l.groups[i].num_kv_heads = g["num_qo_heads"], g["num_kv_heads"]
        l.groups[i].causal = 1 if g.get("causal", True) else 0
        l.groups[i].window_left = g.get("window_left", -1)
    return 0


cdef class AttentionHandle:
    """create, sizes, plan and run; memory and defaults are Attention's in attention.py."""
    cdef fulmen_attention* handle
    cdef readonly Context context
    cdef readonly uint64_t plan_bytes
    cdef readonly uint64_t scratch_bytes

    def __cinit__(self, Context context, dict spec, dict limits):
        cdef fulmen_attention_spec s
        cdef fulmen_attention_limits l
        cdef fulmen_attention_sizes sizes
        put_spec(&s, spec)
        put_limits(&l, limits)
        check(fulmen_attention_create(context.handle, &s, &l, &self.handle))
        self.context = context
        memset(&sizes, 0, sizeof(sizes))
        sizes.struct_size = sizeof(sizes)
        check(fulmen_attention_sizes_of(self.handle, &sizes))
        self.plan_bytes, self.scratch_bytes = sizes.plan_bytes, sizes.scratch_bytes

    def __dealloc__(self):
        if self.handle != NULL:
            fulmen_attention_destroy(self.handle)

    def plan(self, list levels, int page_size, plan_mem, stream=None):
        cdef Call call = Call()
        cdef fulmen_attention_lengths n
        cdef fulmen_tensor p
        cdef fulmen_status status
        cdef int i
        memset(&n, 0, sizeof(n))
        memset(&p, 0, sizeof(p))
        n.struct_size = sizeof(n)
        n.num_levels, n.page_size = len(levels), page_size
        if len(levels) > 4:
            raise ValueError(f"levels: expected at most 4, found {len(levels)}")
        for i, level in enumerate(levels):
            n.levels[i].struct_size = sizeof(fulmen_attention_level)
            call.put(&n.levels[i].qo_indptr, level["qo_indptr"])
            call.put(&n.levels[i].kv_len, level.get("kv_len"))
            call.put(&n.levels[i].kv_page_indptr, level.get("kv_page_indptr"))
            call.put(&n.levels[i].last_page_len, level.get("last_page_len"))
        call.put(&p, plan_mem)
        cdef fulmen_stream s = stream_of(stream)
        with nogil:
            status = fulmen_attention_plan(self.handle, &n, p.data, s)
        check(status)

    def run(self, q, k, v, o, list tables, plan_mem, scratch, *, lse=None, list v_tables=None, int group=0, int page_size=1,
            float sm_scale=0.0, float logits_soft_cap=0.0, alibi_slopes=None, sinks=None, mask=None, mask_indptr=None,
            dict rope=None, stream=None):
        cdef Call call = Call()
        cdef fulmen_attention_tensors t
        cdef fulmen_tensor p, w
        cdef fulmen_status status
        cdef int i
        memset(&t, 0, sizeof(t))
        memset(&p, 0, sizeof(p))
        memset(&w, 0, sizeof(w))
        t.struct_size = sizeof(t)
        t.group, t.page_size, t.sm_scale, t.logits_soft_cap = group, page_size, sm_scale, logits_soft_cap
        call.put(&t.q, q); call.put(&t.k, k); call.put(&t.v, v); call.put(&t.o, o); call.put(&t.lse, lse)
        call.put(&t.alibi_slopes, alibi_slopes); call.put(&t.sinks, sinks)
        call.put(&t.mask, mask); call.put(&t.mask_indptr, mask_indptr)
        for i in range(4):
            call.put_table(&t.kv[i], tables[i] if i < len(tables) else None)
            call.put_table(&t.v_table[i], v_tables[i] if v_tables is not None and i < len(v_tables) else None)
        put_rope(&t.rope, rope)
        call.put(&p, plan_mem); call.put(&w, scratch)
        cdef fulmen_stream s = stream_of(stream)
        with nogil:
            status = fulmen_attention_run(self.handle, &t, p.data, w.data, s)
        check(status)


# ---------------------------------------------------------------------------------------------- one call per op
def append_kv(Context context, k, v, k_cache, v_cache, slot_mapping, qo_indptr, kv_len, last_page_len, table, stream):
    cdef Call call = Call()
    cdef fulmen_append_kv_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.k, k); call.put(&a.v, v); call.put(&a.k_cache, k_cache); call.put(&a.v_cache, v_cache)
    call.put(&a.slot_mapping, slot_mapping); call.put(&a.qo_indptr, qo_indptr); call.put(&a.kv_len, kv_len)
    call.put(&a.last_page_len, last_page_len); call.put_table(&a.table, table)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_append_kv(context.handle, &a, s)
    check(status)


def merge_states(Context context, part_o, part_lse, o, lse, stream):
    cdef Call call = Call()
    cdef fulmen_merge_states_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.part_o, part_o); call.put(&a.part_lse, part_lse); call.put(&a.o, o); call.put(&a.lse, lse)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_merge_states(context.handle, &a, s)
    check(status)


def merge_state(Context context, o_a, lse_a, o_b, lse_b, o, lse, stream):
    cdef Call call = Call()
    cdef fulmen_merge_state_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.o_a, o_a); call.put(&a.lse_a, lse_a); call.put(&a.o_b, o_b); call.put(&a.lse_b, lse_b)
    call.put(&a.o, o); call.put(&a.lse, lse)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_merge_state(context.handle, &a, s)
    check(status)


def rope(Context context, q, k, q_out, k_out, positions, cos_sin_cache, dict params, stream):
    cdef Call call = Call()
    cdef fulmen_rope_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.q, q); call.put(&a.k, k); call.put(&a.q_out, q_out); call.put(&a.k_out, k_out)
    call.put(&a.positions, positions); call.put(&a.cos_sin_cache, cos_sin_cache)
    put_rope(&a.params, params)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_rope(context.handle, &a, s)
    check(status)


def rope_append(Context context, q, k, v, k_cache, v_cache, q_out, positions, cos_sin_cache, slot_mapping, qo_indptr, kv_len,
                last_page_len, table, dict params, stream):
    cdef Call call = Call()
    cdef fulmen_rope_append_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.q, q); call.put(&a.k, k); call.put(&a.v, v); call.put(&a.q_out, q_out)
    call.put(&a.positions, positions); call.put(&a.cos_sin_cache, cos_sin_cache)
    put_rope(&a.params, params)
    call.put(&a.k_cache, k_cache); call.put(&a.v_cache, v_cache); call.put(&a.slot_mapping, slot_mapping)
    call.put(&a.qo_indptr, qo_indptr); call.put(&a.kv_len, kv_len); call.put(&a.last_page_len, last_page_len)
    call.put_table(&a.table, table)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_rope_append(context.handle, &a, s)
    check(status)


def rms_norm(Context context, x, weight, residual, out, float eps, float weight_offset, stream):
    cdef Call call = Call()
    cdef fulmen_rms_norm_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    a.eps, a.weight_offset = eps, weight_offset
    call.put(&a.x, x); call.put(&a.weight, weight); call.put(&a.residual, residual); call.put(&a.out, out)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_rms_norm(context.handle, &a, s)
    check(status)


def layer_norm(Context context, x, weight, bias, out, float eps, stream):
    cdef Call call = Call()
    cdef fulmen_layer_norm_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    a.eps = eps
    call.put(&a.x, x); call.put(&a.weight, weight); call.put(&a.bias, bias); call.put(&a.out, out)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_layer_norm(context.handle, &a, s)
    check(status)


def act_and_mul(Context context, x, out, int activation, stream):
    cdef Call call = Call()
    cdef fulmen_act_and_mul_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    a.activation = activation
    call.put(&a.x, x); call.put(&a.out, out)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_act_and_mul(context.handle, &a, s)
    check(status)


def softmax(Context context, logits, probs, temperature, stream):
    cdef Call call = Call()
    cdef fulmen_softmax_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    if isinstance(temperature, (int, float)): a.temperature = temperature
    else: call.put(&a.temperatures, temperature)
    call.put(&a.logits, logits); call.put(&a.probs, probs)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_softmax(context.handle, &a, s)
    check(status)


def argmax(Context context, x, index, stream):
    cdef Call call = Call()
    cdef fulmen_argmax_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.x, x); call.put(&a.index, index)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_argmax(context.handle, &a, s)
    check(status)


def sample(Context context, input, bint is_probs, tokens, logprob, temperature, top_k, top_p, min_p, bint joint, seed,
           offset, row_ids, stream):
    cdef Call call = Call()
    cdef fulmen_sample_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    a.input_is_probs = is_probs
    put_filter(call, &a.filter, temperature, top_k, top_p, min_p, joint)
    if isinstance(seed, int): a.seed = seed & 0xFFFFFFFFFFFFFFFF
    else: call.put(&a.seeds, seed)
    if isinstance(offset, int): a.offset = offset & 0xFFFFFFFFFFFFFFFF
    else: call.put(&a.offsets, offset)
    call.put(&a.input, input); call.put(&a.tokens, tokens); call.put(&a.logprob, logprob); call.put(&a.row_ids, row_ids)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_sample(context.handle, &a, s)
    check(status)


def filter(Context context, input, bint is_probs, bint to_logits, output, temperature, top_k, top_p, min_p, bint joint, stream):
    cdef Call call = Call()
    cdef fulmen_filter_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    a.input_is_probs, a.output_is_logits = is_probs, to_logits
    put_filter(call, &a.filter, temperature, top_k, top_p, min_p, joint)
    call.put(&a.input, input); call.put(&a.output, output)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_filter(context.handle, &a, s)
    check(status)


def top_k(Context context, x, values, indices, stream):
    cdef Call call = Call()
    cdef fulmen_top_k_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.x, x); call.put(&a.values, values); call.put(&a.indices, indices)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_top_k(context.handle, &a, s)
    check(status)


# ---------------------------------------------------------------------------------------------- what runs where
OPS = tuple((<bytes>fulmen_op_name(i)).decode() for i in range(12))


cdef int put_op(fulmen_op_spec* to, fulmen_attention_spec* s, fulmen_attention_limits* l, str op, str dtype, dict spec,
                dict limits) except -1:
    memset(to, 0, sizeof(fulmen_op_spec))
    to.struct_size = sizeof(fulmen_op_spec)
    if op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}, found {op!r}")
    to.op = OPS.index(op)
    to.dtype = DTYPES[dtype]
    if spec is not None:
        put_spec(s, spec)
        to.attention = s
    if limits is not None:
        put_limits(l, limits)
        to.limits = l
    return 0


def supports(str target, str op, str dtype="f16", dict spec=None, dict limits=None):
    """-> "" when supported, else what is missing."""
    cdef fulmen_op_spec o
    cdef fulmen_attention_spec s
    cdef fulmen_attention_limits l
    put_op(&o, &s, &l, op, dtype, spec, limits)
    name = target.encode()
    try:
        check(fulmen_supports(name, &o))
    except Unsupported as error:
        return str(error)
    return ""


cdef str take(char* text):
    try:
        return (<bytes>text).decode("utf-8", "replace")
    finally:
        fulmen_string_free(text)


def explain(str target, str op, str dtype="f16", dict spec=None, dict limits=None):
    cdef fulmen_op_spec o
    cdef fulmen_attention_spec s
    cdef fulmen_attention_limits l
    cdef char* text = NULL
    put_op(&o, &s, &l, op, dtype, spec, limits)
    name = target.encode()
    check(fulmen_explain(name, &o, &text))
    return take(text)


# ---------------------------------------------------------------------------------------------- compiling beforehand
cdef class Specs:
    """An array of fulmen_op_spec from dicts {"op", "dtype", "spec", "limits"}, with what it points to."""
    cdef fulmen_op_spec* ops
    cdef fulmen_attention_spec* specs
    cdef fulmen_attention_limits* limits
    cdef int count

    def __cinit__(self, list ops):
        cdef int i
        self.count = len(ops)
        self.ops = <fulmen_op_spec*>calloc(self.count + 1, sizeof(fulmen_op_spec))
        self.specs = <fulmen_attention_spec*>calloc(self.count + 1, sizeof(fulmen_attention_spec))
        self.limits = <fulmen_attention_limits*>calloc(self.count + 1, sizeof(fulmen_attention_limits))
        if self.ops == NULL or self.specs == NULL or self.limits == NULL:
            raise MemoryError()
        for i, op in enumerate(ops):
            put_op(&self.ops[i], &self.specs[i], &self.limits[i], op["op"], op.get("dtype", "f16"), op.get("spec"),
                   op.get("limits"))

    def __dealloc__(self):
        free(self.ops); free(self.specs); free(self.limits)


cdef class Progress:
    """Calls `report(done, total, kernel, seconds)` from whichever thread has finished a kernel; its first error is kept."""
    cdef object report
    cdef object error

    def __cinit__(self, report):
        self.report, self.error = report, None


cdef void on_progress(void* user, int32_t done, int32_t total, const char* kernel, double seconds) noexcept with gil:
    cdef Progress progress = <Progress>user
    if progress.report is None or progress.error is not None:
        return
    try:
        progress.report(done, total, (<bytes>kernel).decode("utf-8", "replace"), seconds)
    except BaseException as error:  # nothing may pass through C
        progress.error = error


def prepare(Context context, list ops, report=None):
    cdef Specs specs = Specs(ops)
    cdef Progress progress = Progress(report)
    cdef fulmen_status status
    cdef void* user = <void*>progress
    with nogil:
        status = fulmen_prepare(context.handle, specs.ops, specs.count, on_progress, user)
    check(status)
    if progress.error is not None:
        raise progress.error


def prepare_target(str target, list ops, report=None, cache_dir=None, nvrtc_path=None, kernels_dir=None):
    cdef Specs specs = Specs(ops)
    cdef Progress progress = Progress(report)
    cdef fulmen_context_options o
    cdef fulmen_status status
    cdef void* user = <void*>progress
    memset(&o, 0, sizeof(o))
    o.struct_size = sizeof(o)
    texts = [None if t is None else str(t).encode() for t in (cache_dir, nvrtc_path, kernels_dir)]
    if texts[0] is not None: o.cache_dir = texts[0]
    if texts[1] is not None: o.nvrtc_path = texts[1]
    if texts[2] is not None: o.kernels_dir = texts[2]
    name = target.encode()
    cdef const char* c_name = name
    with nogil:
        status = fulmen_prepare_target(c_name, &o, specs.ops, specs.count, on_progress, user)
    check(status)
    if progress.error is not None:
        raise progress.error


def info():
    cdef char* text = NULL
    check(fulmen_info(&text))
    return take(text)


def version():
    return (<bytes>fulmen_version()).decode()
