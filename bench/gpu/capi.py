"""Fulmen's C ABI through ctypes, read from fulmen.h itself, so that the two can't drift apart.

    lib = Fulmen("build/src/libfulmen.so", "include/fulmen/fulmen.h")
    args = lib.new("rms_norm_args", x=tensor, weight=weight, out=out, eps=1e-5)
    lib.call("rms_norm", context, args, stream)

Tensors are torch tensors or numpy arrays; dtype names numpy lacks are given as `(array, "bf16")`.
"""
import ctypes
import re

SCALARS = {
    "size_t": ctypes.c_size_t, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64, "float": ctypes.c_float, "double": ctypes.c_double,
}


class FulmenError(RuntimeError):
    pass


def parse_header(text):
    """-> ({constant: value}, {struct: ctypes class}) of a header in fulmen.h's style."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    constants = {name: int(value) for name, value in re.findall(r"#define (FULMEN_\w+) (\d+)\n", text)}
    for body in re.findall(r"enum(?: \w+)? \{(.*?)\}", text, flags=re.S):
        for name, value in re.findall(r"(FULMEN_\w+)\s*=\s*([^,\n]+)", body):
            constants[name] = eval(value, {})  # noqa: S307 - integer expressions such as 1 << 3, of our own header
    structs = {}
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\}\s*\w+;", text, flags=re.S):
        fields = []
        for statement in filter(None, (s.strip() for s in body.split(";"))):
            kind, names = re.match(r"(?:const )?(\w+)\s*(.*)", statement, flags=re.S).groups()
            for declarator in names.split(","):
                stars, field, extent = re.match(r"\s*(\**)\s*(\w+)(?:\[(\w+)\])?", declarator).groups()
                if stars or (kind not in SCALARS and kind not in structs):
                    ctype = ctypes.c_char_p if kind == "char" else ctypes.c_void_p
                else:
                    ctype = SCALARS.get(kind) or structs[kind]
                if extent:
                    ctype = ctype * int(constants.get(extent, extent) if not extent.isdigit() else extent)
                fields.append((field, ctype))
        structs[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return constants, structs


class Fulmen:
    def __init__(self, library, header):
        self.lib = ctypes.CDLL(library)
        self.constants, self.structs = parse_header(open(header).read())
        self.lib.fulmen_last_error.restype = ctypes.c_char_p
        self.lib.fulmen_version.restype = ctypes.c_char_p

    def constant(self, name):
        return self.constants["FULMEN_" + name]

    def new(self, struct, **members):
        cls = self.structs["fulmen_" + struct]
        value = cls()
        if hasattr(value, "struct_size"):
            value.struct_size = ctypes.sizeof(cls)
        for inner in cls._fields_:
            self._init_sizes(getattr(value, inner[0]))
        for name, member in members.items():
            self.assign(value, name, member)
        return value

    def _init_sizes(self, value):
        """Nested structs know their size too."""
        if isinstance(value, ctypes.Array) and len(value) and isinstance(value[0], ctypes.Structure):
            for item in value:
                self._init_sizes(item)
        elif isinstance(value, ctypes.Structure):
            if hasattr(value, "struct_size"):
                value.struct_size = ctypes.sizeof(value)
            for field, _ in value._fields_:
                self._init_sizes(getattr(value, field))

    def assign(self, value, name, member):
        current = getattr(value, name)
        if isinstance(current, self.structs["fulmen_tensor"]):
            setattr(value, name, self.tensor(member))
        elif isinstance(member, dict):
            for inner, item in member.items():
                self.assign(current, inner, item)
        elif isinstance(member, list):
            for i, item in enumerate(member):
                for inner, leaf in item.items():
                    self.assign(current[i], inner, leaf)
        else:
            setattr(value, name, member)

    def tensor(self, source):
        view = self.structs["fulmen_tensor"]()
        dtype = None
        if isinstance(source, tuple):
            source, dtype = source
        if hasattr(source, "data_ptr"):  # torch
            view.data = source.data_ptr()
            dtype = dtype or {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int32": "i32", "int64": "i64",
                              "uint8": "u8"}[str(source.dtype).removeprefix("torch.")]
            shape, strides = tuple(source.shape), tuple(source.stride())
            view.device = self.constant("CUDA") if source.is_cuda else self.constant("CPU")
        else:  # numpy
            view.data = source.ctypes.data
            dtype = dtype or {"float32": "f32", "float16": "f16", "int32": "i32", "int64": "i64", "uint8": "u8",
                              "uint32": "u32", "uint64": "u64"}[str(source.dtype)]
            shape, strides = source.shape, tuple(s // source.itemsize for s in source.strides)
            view.device = self.constant("CPU")
        view.dtype = self.constant(dtype.upper())
        view.ndim = len(shape)
        for i, (extent, stride) in enumerate(zip(shape, strides)):
            view.shape[i], view.stride[i] = extent, stride
        return view

    def check(self, status):
        if status != 0:
            raise FulmenError(self.lib.fulmen_last_error().decode())

    def call(self, op, context, args, stream=None):
        self.check(getattr(self.lib, "fulmen_" + op)(context, ctypes.byref(args), ctypes.c_void_p(stream)))

    def context(self, device="cpu", **options):
        handle = ctypes.c_void_p()
        device_type = self.constant("CUDA" if device == "cuda" else "CPU")
        self.check(self.lib.fulmen_context_create(
            ctypes.byref(self.new("context_options", device_type=device_type, **options)), ctypes.byref(handle)))
        return handle


class Attention:
    """create, sizes, plan and run of one spec and limits; `alloc(nbytes)` gives memory with .data_ptr()."""

    def __init__(self, fulmen, context, spec, limits, alloc, stream=None):
        self.fulmen, self.context = fulmen, context
        self.handle = ctypes.c_void_p()
        spec, limits = fulmen.new("attention_spec", **spec), fulmen.new("attention_limits", **limits)
        fulmen.check(fulmen.lib.fulmen_attention_create(context, ctypes.byref(spec), ctypes.byref(limits),
                                                        ctypes.byref(self.handle)))
        sizes = fulmen.new("attention_sizes")
        fulmen.check(fulmen.lib.fulmen_attention_sizes_of(self.handle, ctypes.byref(sizes)))
        self.plan_mem, self.scratch = alloc(sizes.plan_bytes), alloc(sizes.scratch_bytes)
        self.plan_bytes, self.scratch_bytes = sizes.plan_bytes, sizes.scratch_bytes
        fulmen.check(fulmen.lib.fulmen_scratch_init(context, ctypes.c_void_p(self.scratch.data_ptr()),
                                                    ctypes.c_uint64(sizes.scratch_bytes), ctypes.c_void_p(stream)))

    def plan(self, lengths, stream=None):
        self.fulmen.check(self.fulmen.lib.fulmen_attention_plan(
            self.handle, ctypes.byref(lengths), ctypes.c_void_p(self.plan_mem.data_ptr()), ctypes.c_void_p(stream)))

    def run(self, tensors, stream=None):
        self.fulmen.check(self.fulmen.lib.fulmen_attention_run(
            self.handle, ctypes.byref(tensors), ctypes.c_void_p(self.plan_mem.data_ptr()),
            ctypes.c_void_p(self.scratch.data_ptr()), ctypes.c_void_p(stream)))
