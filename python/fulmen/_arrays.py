"""Whose tensors these are: outputs come from the library of the first tensor argument, torch is never imported."""
import itertools
import sys
import weakref
from typing import Any, Tuple

from . import _binding
from ._binding import Typed

_TORCH_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i32": "int32", "i64": "int64", "u8": "uint8"}
_NUMPY_NAMES = {"f32": "float32", "f16": "float16", "bf16": "uint16", "i32": "int32", "i64": "int64", "u8": "uint8",
                "u32": "uint32", "u64": "uint64"}
_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int32": "i32", "int64": "i64", "uint8": "u8",
          "uint32": "u32", "uint64": "u64", "bool": "u8"}

_seen = {}  # numpy's and torch's dtypes: names

Tensor = Any  # numpy's, torch's, Typed, or anything with __dlpack__


def is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def compiling() -> bool:
    """Is torch.compile tracing this call?"""
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "compiler") and torch.compiler.is_compiling()


def dtype_name(x: Tensor) -> str:
    """'f32', 'bf16', ... of a tensor of any library."""
    if isinstance(x, Typed):
        return x.dtype
    found = _seen.get(x.dtype)
    if found is None:
        name = str(x.dtype).rsplit(".", 1)[-1]
        if name not in _NAMES:
            raise _binding.InvalidArgument("invalid_argument", f"dtype: expected one of {', '.join(_NAMES)}, found {name}")
        found = _seen[x.dtype] = _NAMES[name]
    return found


def shape_of(x: Tensor) -> Tuple[int, ...]:
    return x.tensor.shape if type(x) is Typed else x.shape


def empty_like(x, shape=None, dtype=None):
    """An uninitialised tensor beside x: its library and device, row-major."""
    if shape is None and dtype is None and is_torch(x) and x.is_contiguous():
        return sys.modules["torch"].empty_like(x)  # half the time of a shape that torch has to read
    inner = x.tensor if isinstance(x, Typed) else x
    shape = shape_of(x) if shape is None else tuple(shape)
    dtype = dtype_name(x) if dtype is None else dtype
    if is_torch(inner):
        wanted = getattr(sys.modules["torch"], _TORCH_NAMES[dtype])
        return inner.new_empty(shape) if inner.dtype is wanted else inner.new_empty(shape, dtype=wanted)
    import numpy
    if not isinstance(inner, numpy.ndarray):
        raise TypeError(f"out: outputs can be made beside numpy and torch tensors only; give one for {type(inner).__name__}")
    made = numpy.empty(shape, _NUMPY_NAMES[dtype])
    return Typed(made, "bf16") if dtype == "bf16" else made


def stream_of(x):
    """The stream that orders x's work: torch's current one for torch's CUDA tensors, else none."""
    if is_torch(x) and x.is_cuda:
        return sys.modules["torch"]._C._cuda_getCurrentRawStream(x.get_device())  # without an object around it
    return None


_ids = itertools.count()
named = weakref.WeakValueDictionary()  # by number: what a graph of torch.compile refers to


def give_name(thing: Any) -> int:
    name = next(_ids)
    named[name] = thing
    return name


_contexts = {}


def context_of(x):
    """The process's default context of x's device."""
    inner = x.tensor if isinstance(x, Typed) else x
    if is_torch(inner):
        index = inner.get_device()  # -1: the CPU
    else:
        kind, index = inner.__dlpack_device__()
        index = index if kind in (2, 13) else -1
    context = _contexts.get(index)
    if context is None:
        context = _contexts.setdefault(index, _binding.Context(*(("cpu", 0) if index < 0 else ("cuda", index))))
    return context
