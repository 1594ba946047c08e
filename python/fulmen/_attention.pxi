# The context, and attention: create, plan, run.

# ---------------------------------------------------------------------------------------------- context
cdef class Context:
    """What calls run on: Context("cpu"), on num_threads workers (0: one a core), or Context("cuda", device_index).

    cache_dir    where compiled kernels are kept, nvrtc_path the compiler, kernels_dir the kernels' sources; None: what
                 `fulmen info` names
    Errors: InvalidArgument names the option; FulmenError where there is no driver or no such GPU."""
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
        """After this a call that would have to compile a kernel raises FulmenError instead."""
        check(fulmen_seal(self.handle))

    def scratch_init(self, scratch, stream=None):
        """Makes memory ready to be an attention handle's scratch, once. scratch: a uint8 tensor on the context's device."""
        cdef Call call = Call(self.device_index)
        cdef fulmen_tensor t
        memset(&t, 0, sizeof(t))
        call.put(&t, scratch, "scratch")
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
def last_and_longest_step(indptr):
    """The last of offsets i32 | i64 [n] of the host and the largest difference of neighbours; 0 where there is none."""
    cdef Call call = Call(0)
    cdef fulmen_tensor t
    cdef int64_t i, step, most = 0
    cdef int64_t at
    memset(&t, 0, sizeof(t))
    call.put(&t, indptr, "indptr")
    if t.device != 1 or t.ndim != 1 or t.dtype not in (5, 6):
        raise InvalidArgument("invalid_argument", "indptr: expected i32 or i64 [n] on the host")
    for i in range(1, t.shape[0]):
        at = i * t.stride[0]
        if t.dtype == 5:
            step = <int64_t>(<int32_t*>t.data)[at] - (<int32_t*>t.data)[at - t.stride[0]]
        else:
            step = (<int64_t*>t.data)[at] - (<int64_t*>t.data)[at - t.stride[0]]
        most = max(most, step)
    at = (t.shape[0] - 1) * t.stride[0]
    if t.shape[0] == 0:
        return 0, 0
    return (<int32_t*>t.data)[at] if t.dtype == 5 else (<int64_t*>t.data)[at], most


def pack_indices(to, tensors, list sizes):
    """Index tensors i32 | i64 [sizes[i]] of the host, one after another into `to`, i32 of the host with room for all of them.
    -> False where one is of another kind or size"""
    cdef Call call = Call(0)
    cdef fulmen_tensor t, w
    cdef int64_t i, n, at = 0
    cdef int32_t* out
    if len(tensors) != len(sizes):
        return False
    memset(&w, 0, sizeof(w))
    call.put(&w, to, "to")
    if w.device != 1 or w.ndim != 1 or w.dtype != 5 or (w.shape[0] > 1 and w.stride[0] != 1):
        raise InvalidArgument("invalid_argument", "to: expected i32 [n] on the host, dense")
    for x, size in zip(tensors, sizes):
        memset(&t, 0, sizeof(t))
        if x.ndim != 1:
            return False
        call.put(&t, x, "x")
        n = size
        if t.device != 1 or t.dtype not in (5, 6) or t.shape[0] != n:
            return False
        if n > w.shape[0] - at:
            raise InvalidArgument("invalid_argument", f"to: expected room for all indices, found {w.shape[0]}")
        out = <int32_t*>w.data + at
        if t.dtype == 5 and t.stride[0] == 1:
            memcpy(out, t.data, <size_t>n * 4)
        elif t.dtype == 5:
            for i in range(n):
                out[i] = (<int32_t*>t.data)[i * t.stride[0]]
        else:
            for i in range(n):
                out[i] = <int32_t>(<int64_t*>t.data)[i * t.stride[0]]
        at += n
    return True


cdef dict FEATURES = {"soft_cap": 1, "alibi": 2, "sinks": 4, "rope": 8, "custom_mask": 16, "no_softmax": 32}


cdef int put_spec(fulmen_attention_spec* s, dict spec, list keep) except -1:
    """keep: what the C struct points to, which must outlive the call."""
    cdef bytes name, source
    memset(s, 0, sizeof(fulmen_attention_spec))
    s.struct_size = sizeof(fulmen_attention_spec)
    s.q_dtype = dtype_named(spec["q_dtype"])
    s.kv_dtype = dtype_named(spec.get("kv_dtype") or spec["q_dtype"])
    s.o_dtype = dtype_named(spec.get("o_dtype") or spec["q_dtype"], "o_dtype")
    s.head_dim_qk = spec["head_dim_qk"]
    s.head_dim_vo = spec.get("head_dim_vo") or spec["head_dim_qk"]
    for feature in spec.get("features", ()):
        if feature not in FEATURES:
            raise ValueError(f"features: expected some of {', '.join(FEATURES)}, found {feature!r}")
        s.features |= <uint32_t>FEATURES[feature]
    s.batch_invariant = 1 if spec.get("batch_invariant") else 0
    variant = spec.get("variant")
    if variant is not None:
        name, source = variant["name"].encode(), variant["source"].encode()
        keep += (name, source)
        s.variant_name, s.variant_source = name, source
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
        for name in ("num_qo_heads", "num_kv_heads"):
            if name not in g:
                raise InvalidArgument("invalid_argument", f"groups[{i}]: expected {name}, found {sorted(g)}")
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
        cdef list keep = []
        put_spec(&s, spec, keep)
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
        cdef Call call = Call(self.context.device_index)
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
            call.put(&n.levels[i].qo_indptr, level["qo_indptr"], "qo_indptr")
            call.put(&n.levels[i].kv_len, level.get("kv_len"), "kv_len")
            call.put(&n.levels[i].kv_page_indptr, level.get("kv_page_indptr"), "kv_page_indptr")
            call.put(&n.levels[i].last_page_len, level.get("last_page_len"), "last_page_len")
        call.put(&p, plan_mem, "plan_mem")
        cdef fulmen_stream s = stream_of(stream)
        with nogil:
            status = fulmen_attention_plan(self.handle, &n, p.data, s)
        check(status)

    def run(self, q, k, v, o, list tables, plan_mem, scratch, lse=None, list v_tables=None, int group=0, int page_size=1,
            float sm_scale=0.0, float logits_soft_cap=0.0, alibi_slopes=None, sinks=None, mask=None, mask_indptr=None,
            dict rope=None, bytes variant_params=None, float o_scale=0.0, bint lse_base2=False, stream=None):
        cdef Call call = Call(self.context.device_index)
        cdef fulmen_attention_tensors t
        cdef fulmen_tensor p, w
        cdef fulmen_status status
        memset(&p, 0, sizeof(p))
        memset(&w, 0, sizeof(w))
        put_options(call, &t, tables, v_tables, group, page_size, sm_scale, logits_soft_cap, alibi_slopes, sinks, mask,
                    mask_indptr, rope, variant_params, o_scale, lse_base2)
        call.put(&t.q, q, "q"); call.put(&t.k, k, "k"); call.put(&t.v, v, "v"); call.put(&t.o, o, "o"); call.put(&t.lse, lse, "lse")
        call.put(&p, plan_mem, "plan_mem"); call.put(&w, scratch, "scratch")
        cdef fulmen_stream s = stream_of(stream)
        with nogil:
            status = fulmen_attention_run(self.handle, &t, p.data, w.data, s)
        check(status)


cdef int put_options(Call call, fulmen_attention_tensors* t, list tables, list v_tables, int group, int page_size, float sm_scale,
                     float logits_soft_cap, alibi_slopes, sinks, mask, mask_indptr, dict rope, bytes variant_params,
                     float o_scale, bint lse_base2) except -1:
    """All but q, k, v, o and lse."""
    cdef int i
    memset(t, 0, sizeof(fulmen_attention_tensors))
    t.struct_size = sizeof(fulmen_attention_tensors)
    t.group, t.page_size, t.sm_scale, t.logits_soft_cap = group, page_size, sm_scale, logits_soft_cap
    t.o_scale, t.lse_base2 = o_scale, lse_base2
    call.put(&t.alibi_slopes, alibi_slopes, "alibi_slopes"); call.put(&t.sinks, sinks, "sinks")
    call.put(&t.mask, mask, "mask"); call.put(&t.mask_indptr, mask_indptr, "mask_indptr")
    for i in range(4):
        call.put_table(&t.kv[i], tables[i] if i < len(tables) else None, "tables")
        call.put_table(&t.v_table[i], v_tables[i] if v_tables is not None and i < len(v_tables) else None, "v_tables")
    put_rope(&t.rope, rope)
    if variant_params is not None:
        t.variant_params, t.variant_params_bytes = <const char*>variant_params, len(variant_params)
    return 0


# ---------------------------------------------------------------------------------------------- the same call again
cdef bint alike(fulmen_tensor* a, fulmen_tensor* b):
    cdef int i
    if a.dtype != b.dtype or a.ndim != b.ndim or a.device != b.device:
        return False
    for i in range(a.ndim):
        if a.shape[i] != b.shape[i]:
            return False
    return True


cpdef bint same_arguments(tuple a, tuple b):
    """Element by element the same object, or the same number: nothing that a tensor would have to answer."""
    if len(a) != len(b):
        return False
    for x, y in zip(a, b):
        if x is not y and not (type(x) is type(y) and type(x) in (float, int) and x == y):
            return False
    return True


cdef int split_cache(Call call, object cache, bint hnd, fulmen_tensor* k, fulmen_tensor* v) except -1:
    """A paged cache [pages, 2, page_size, heads, dim], or a pair of them without the 2. 0: of another form."""
    cdef int i
    if type(cache) is tuple:
        if len(<tuple>cache) != 2:
            return 0
        call.put(k, (<tuple>cache)[0], "paged_kv_cache[0]"); call.put(v, (<tuple>cache)[1], "paged_kv_cache[1]")
    else:
        call.put(k, cache, "paged_kv_cache")
        if k.ndim != 5 or k.shape[1] < 1 or k.dtype > 2:
            return 0
        v[0] = k[0]
        v.data = <char*>k.data + k.stride[1] * (k.shape[1] - 1) * (4 if k.dtype == 0 else 2)
        for i in range(1, 4):
            k.shape[i], k.stride[i] = k.shape[i + 1], k.stride[i + 1]
            v.shape[i], v.stride[i] = v.shape[i + 1], v.stride[i + 1]
        k.ndim = v.ndim = 4
    if k.ndim != 4 or v.ndim != 4:
        return 0
    if hnd:
        for t in range(2):
            if t == 1:
                k = v
            k.shape[1], k.shape[2] = k.shape[2], k.shape[1]
            k.stride[1], k.stride[2] = k.stride[2], k.stride[1]
    return 1


cdef class AttentionCall:
    """A run whose tables, memory and options are put once, to be made again on other q, k, v, o, lse and sinks.

    `given`: what else the caller was asked for. `run` does nothing and gives False where this, a shape or a dtype is
    another one; then the call has to be made anew. k and v may be one paged cache, laid out NHD or `hnd`."""
    cdef readonly AttentionHandle owner
    cdef Call kept
    cdef fulmen_attention_tensors base
    cdef fulmen_tensor plan, scratch
    cdef tuple given
    cdef bint hnd

    def __cinit__(self, AttentionHandle owner, tuple given, bint hnd, q, k, v, o, list tables, plan_mem, scratch, *,
                  list v_tables=None, int group=0, int page_size=1, float sm_scale=0.0, float logits_soft_cap=0.0,
                  alibi_slopes=None, sinks=None, mask=None, mask_indptr=None, dict rope=None, float o_scale=0.0,
                  bint lse_base2=False):
        cdef Call call = Call(owner.context.device_index)
        self.owner, self.given, self.hnd, self.kept = owner, given, hnd, Call(owner.context.device_index)
        put_options(self.kept, &self.base, tables, v_tables, group, page_size, sm_scale, logits_soft_cap, alibi_slopes, sinks,
                    mask, mask_indptr, rope, None, o_scale, lse_base2)
        memset(&self.plan, 0, sizeof(fulmen_tensor))
        memset(&self.scratch, 0, sizeof(fulmen_tensor))
        self.kept.put(&self.plan, plan_mem, "plan_mem"); self.kept.put(&self.scratch, scratch, "scratch")
        call.put(&self.base.q, q, "q"); call.put(&self.base.k, k, "k")
        call.put(&self.base.v, v, "v"); call.put(&self.base.o, o, "o")

    def run(self, tuple given, q, k, v, o, lse=None, sinks=None, stream=None):
        cdef Call call
        cdef fulmen_attention_tensors t
        cdef fulmen_status status
        if not same_arguments(given, self.given) or (sinks is None) != (self.base.sinks.data == NULL):
            return False
        call = Call(self.owner.context.device_index)
        t = self.base
        call.put(&t.q, q, "q")
        if v is None:
            if split_cache(call, k, self.hnd, &t.k, &t.v) == 0:
                return False
        else:
            call.put(&t.k, k, "k"); call.put(&t.v, v, "v")
        call.put(&t.o, o, "o"); call.put(&t.lse, lse, "lse")
        if sinks is not None:
            call.put(&t.sinks, sinks, "sinks")
            if not alike(&t.sinks, &self.base.sinks):
                return False
        if not (alike(&t.q, &self.base.q) and alike(&t.k, &self.base.k) and alike(&t.v, &self.base.v)
                and alike(&t.o, &self.base.o)):
            return False
        if t.q.stride[2] != 1 or t.o.stride[2] != 1:
            return False
        cdef fulmen_stream s = stream_of(stream)
        with nogil:
            status = fulmen_attention_run(self.owner.handle, &t, self.plan.data, self.scratch.data, s)
        check(status)
        return True
