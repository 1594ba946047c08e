"""A dry run without a GPU: upstream's tests name CUDA devices, which become the CPU."""
import contextlib
import types

import torch
from torch.overrides import TorchFunctionMode


class DryRunSkip(Exception):
    """Something that only a GPU does."""


def _mapped(x):
    if isinstance(x, str) and x.startswith("cuda"):
        return "cpu"
    if isinstance(x, torch.device) and x.type == "cuda":
        return torch.device("cpu")
    return x


class _Mode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = {k: "cpu" if k == "device" and type(v) is int else _mapped(v) for k, v in (kwargs or {}).items()}
        name = getattr(function, "__name__", "")
        if name == "cuda":
            return args[0]
        if name == "to" and len(args) > 1 and type(args[1]) is int:
            args = (args[0], "cpu", *args[2:])
        if name == "pin_memory":
            return args[0]
        kwargs.pop("pin_memory", None)
        return function(*[_mapped(a) for a in args], **kwargs)


class _Graph:
    def __init__(self, *args, **kwargs):
        raise DryRunSkip("CUDA graphs")


def _generator(kind):
    def make(device="cpu"):
        return kind("cpu")
    return make


def install():
    """For the whole process; call before tests are imported."""
    _Mode().__enter__()
    cuda = torch.cuda
    cuda.is_available = lambda: False
    cuda.current_device = lambda: 0
    cuda.device_count = lambda: 1
    cuda.get_device_capability = lambda *a: (9, 0)
    cuda.get_device_properties = lambda *a: types.SimpleNamespace(name="none", major=9, minor=0, multi_processor_count=2,
                                                                  total_memory=0)
    cuda.synchronize = lambda *a: None
    cuda.empty_cache = lambda: None
    cuda.mem_get_info = lambda *a: (0, 0)
    cuda.manual_seed = cuda.manual_seed_all = lambda seed: None
    cuda.CUDAGraph = cuda.graph = _Graph
    cuda.Stream = cuda.Event = _Graph
    cuda.is_current_stream_capturing = lambda: False
    cuda.device = lambda *a: contextlib.nullcontext()
    torch.Generator = _generator(torch.Generator)
    import fulmen.flashinfer.utils as utils
    utils.get_compute_capability = lambda device: (9, 0)
    for name in ("is_sm90a_supported", "device_support_pdl"):
        setattr(utils, name, lambda device: True)
