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
Tensor = Any  # numpy's, torch's, Typed, or anything with __dlpack__


def is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def compiling() -> bool:
    """Is torch.compile tracing this call?"""
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "compiler") and torch.compiler.is_compiling()


def shape_of(x: Tensor) -> Tuple[int, ...]:
    return x.tensor.shape if type(x) is Typed else getattr(x, "shape", ())  # what is no tensor is refused where it is looked at


def empty_like(x, shape=None, dtype=None):
    """An uninitialised tensor beside x: its library and device, row-major."""
    if shape is None and dtype is None and is_torch(x) and x.is_contiguous():
        return sys.modules["torch"].empty_like(x)  # half the time of a shape that torch has to read
    inner = x.tensor if isinstance(x, Typed) else x
    shape = shape_of(x) if shape is None else tuple(shape)
    if dtype is None and isinstance(x, Typed):
        dtype = x.dtype
    if is_torch(inner):
        if dtype is None:
            return inner.new_empty(shape)
        wanted = getattr(sys.modules["torch"], _TORCH_NAMES[dtype])
        return inner.new_empty(shape) if inner.dtype is wanted else inner.new_empty(shape, dtype=wanted)
    import numpy
    if not isinstance(inner, numpy.ndarray):
        raise TypeError(f"out: outputs can be made beside numpy and torch tensors only; give one for {type(inner).__name__}")
    if dtype is None:
        return numpy.empty(shape, inner.dtype)  # a dtype that there is no op for is refused where x is looked at
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
    """The process's default context of x's device. x: the first argument of the caller's caller, for the error."""
    inner = x.tensor if isinstance(x, Typed) else x
    if is_torch(inner):
        index = inner.get_device()  # -1: the CPU
    else:
        where = getattr(inner, "__dlpack_device__", None)
        if where is None:
            name = sys._getframe(2).f_code.co_varnames[0]
            raise TypeError(f"{name}: expected a tensor (an object with __dlpack__), found {type(inner).__name__}")
        kind, index = where()
        index = index if kind in (2, 13) else -1
    context = _contexts.get(index)
    if context is None:
        context = _contexts.setdefault(index, _binding.Context(*(("cpu", 0) if index < 0 else ("cuda", index))))
    return context
