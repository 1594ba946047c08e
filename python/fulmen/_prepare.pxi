# What runs where and how, and compiling beforehand.

OPS = tuple((<bytes>fulmen_op_name(i)).decode() for i in range(12))


cdef int put_op(fulmen_op_spec* to, fulmen_attention_spec* s, fulmen_attention_limits* l, str op, str dtype, dict spec,
                dict limits, list keep) except -1:
    memset(to, 0, sizeof(fulmen_op_spec))
    to.struct_size = sizeof(fulmen_op_spec)
    if op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}, found {op!r}")
    to.op = OPS.index(op)
    to.dtype = dtype_named(dtype)
    if spec is not None:
        put_spec(s, spec, keep)
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
    cdef list keep = []
    put_op(&o, &s, &l, op, dtype, spec, limits, keep)
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
    cdef list keep = []
    put_op(&o, &s, &l, op, dtype, spec, limits, keep)
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
    cdef list keep

    def __cinit__(self, list ops):
        cdef int i
        self.count, self.keep = len(ops), []
        self.ops = <fulmen_op_spec*>calloc(self.count + 1, sizeof(fulmen_op_spec))
        self.specs = <fulmen_attention_spec*>calloc(self.count + 1, sizeof(fulmen_attention_spec))
        self.limits = <fulmen_attention_limits*>calloc(self.count + 1, sizeof(fulmen_attention_limits))
        if self.ops == NULL or self.specs == NULL or self.limits == NULL:
            raise MemoryError()
        for i, op in enumerate(ops):
            put_op(&self.ops[i], &self.specs[i], &self.limits[i], op["op"], op.get("dtype", "f16"), op.get("spec"),
                   op.get("limits"), self.keep)

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
