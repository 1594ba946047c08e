# Tensors and tables of any library as the C ABI's structs, and its errors as exceptions.

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
cdef dict EXCHANGES = {}  # by type of tensor: its DLPack C API's capsule, or None
cdef dict DTYPES = {"f32": 0, "f16": 1, "bf16": 2, "f8_e4m3": 3, "f8_e5m2": 4, "i32": 5, "i64": 6, "u8": 7, "u32": 8, "u64": 9}

cdef int BITS[10]
BITS[:] = [32, 16, 16, 8, 8, 32, 64, 8, 32, 64]
cdef dict CODES = {0: "i", 1: "u", 2: "f", 4: "bf", 5: "complex", 6: "bool"}

cdef int dtype_named(object dtype, str name="dtype") except -1:
    found = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if found is None:
        raise InvalidArgument("invalid_argument", f"{name}: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    return found


cdef int dtype_of(DLDataType t, str name) except -1:
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
    raise InvalidArgument("invalid_argument", f"{name}: expected f32, f16, bf16, i32, i64, u8, u32 or u64, found "
                          f"{CODES.get(t.code, 'DLPack code %d of ' % t.code)}{t.bits}")


cdef class Typed:
    """A tensor whose dtype its framework can't name: `Typed(numpy_uint16_array, "bf16")`."""
    cdef readonly object tensor
    cdef readonly str dtype

    def __init__(self, tensor, str dtype):
        dtype_named(dtype)
        self.tensor, self.dtype = tensor, dtype


cdef object not_exported(str name, object error):
    text = (str(error) or type(error).__name__).split("\n")[0]
    return InvalidArgument("invalid_argument", f"{name}: expected a tensor that DLPack can hand over, found: {text}")


cdef class Call:
    """What a call keeps alive, and the GPU that its tensors may lie on."""
    cdef list keep
    cdef int device_index

    def __cinit__(self, int device_index):
        self.keep, self.device_index = [], device_index

    cdef int put(self, fulmen_tensor* to, object x, str name) except -1:
        """name: of the argument, for errors."""
        cdef DLTensor view
        cdef DLManagedTensor* managed
        cdef DLPackExchangeAPI* api
        cdef int i
        cdef int64_t stride = 1
        cdef bint dense
        cdef int dtype = -1
        if x is None:
            return 0
        if isinstance(x, Typed):
            dtype = DTYPES[(<Typed>x).dtype]
            x = (<Typed>x).tensor
        kind = type(x)
        exchange = EXCHANGES.get(kind, EXCHANGES)
        if exchange is EXCHANGES:  # a type's first time: to find that it has none takes an exception
            exchange = EXCHANGES[kind] = getattr(kind, "__dlpack_c_exchange_api__", None)
        api = NULL
        if exchange is not None and PyCapsule_IsValid(exchange, "dlpack_exchange_api"):
            api = <DLPackExchangeAPI*>PyCapsule_GetPointer(exchange, "dlpack_exchange_api")
            if api.header.major != 1 or api.dltensor_from_py_object_no_sync == NULL:
                api = NULL
        if api != NULL:
            try:
                api.dltensor_from_py_object_no_sync(<void*>x, &view)
            except Exception as error:
                raise not_exported(name, error) from error
            self.keep.append(x)
        else:
            export = getattr(x, "__dlpack__", None)
            if export is None:
                raise TypeError(f"{name}: expected an object with __dlpack__, found {type(x).__name__}")
            try:
                # -1: no synchronisation, the caller's stream orders the work; CPU exporters take None only.
                where = x.__dlpack_device__()
                capsule = export() if where[0] == 1 else export(stream=-1)
            except Exception as error:
                raise not_exported(name, error) from error
            managed = <DLManagedTensor*>PyCapsule_GetPointer(capsule, "dltensor")
            view = managed.dl_tensor
            self.keep.append(capsule)
        if view.ndim > FULMEN_MAX_DIMS:
            raise InvalidArgument("invalid_argument", f"{name}: expected at most {FULMEN_MAX_DIMS} dimensions, found {view.ndim}")
        to.data = <void*>(<uintptr_t>view.data + view.byte_offset)
        if dtype < 0:
            dtype = dtype_of(view.dtype, name)
        elif view.dtype.bits * view.dtype.lanes != BITS[dtype]:
            raise InvalidArgument("invalid_argument", f"{name}: expected elements of {BITS[dtype]} bits for Typed(..., "
                                  f"{list(DTYPES)[dtype]!r}), found {view.dtype.bits * view.dtype.lanes}")
        to.dtype = dtype
        # DLPack device types beside CPU and CUDA: 3 pinned host memory, 13 managed memory.
        to.device = 2 if view.device.device_type == 2 or view.device.device_type == 13 else 1
        if view.device.device_type == 2 and view.device.device_id != self.device_index:
            raise InvalidArgument("invalid_argument", f"{name}: expected device {self.device_index}, the context's, "
                                  f"found cuda:{view.device.device_id}")
        to.ndim = view.ndim
        dense = view.strides == NULL
        for i in range(view.ndim):  # without elements strides mean nothing, and numpy makes them 0
            dense = dense or view.shape[i] == 0
        for i in range(view.ndim - 1, -1, -1):
            to.shape[i] = view.shape[i]
            to.stride[i] = stride if dense else view.strides[i]
            stride *= max(view.shape[i], 1)
        return 0

    cdef int put_table(self, fulmen_kv_table* to, object table, str name) except -1:
        """None, a 2-D tensor, or a dict with table, indptr, row_index."""
        to.struct_size = sizeof(fulmen_kv_table)
        if table is None:
            return 0
        if isinstance(table, dict):
            unknown = set(table) - {"table", "indptr", "row_index"}
            if unknown:
                raise TypeError(f"{name}: expected keys table, indptr, row_index, found {sorted(unknown)[0]!r}")
            self.put(&to.table, table.get("table"), "table")
            self.put(&to.indptr, table.get("indptr"), "indptr")
            self.put(&to.row_index, table.get("row_index"), "row_index")
        else:
            self.put(&to.table, table, name)
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
    else: call.put(&to.temperatures, temperature, "temperature")
    if isinstance(top_k, int): to.top_k = top_k
    else: call.put(&to.top_ks, top_k, "top_k")
    if isinstance(top_p, (int, float)): to.top_p = top_p
    else: call.put(&to.top_ps, top_p, "top_p")
    if isinstance(min_p, (int, float)): to.min_p = min_p
    else: call.put(&to.min_ps, min_p, "min_p")
    return 0


cdef fulmen_stream stream_of(object stream) except? NULL:
    return <fulmen_stream><uintptr_t>(0 if stream is None else int(stream))
