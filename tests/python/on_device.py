"""The package under test, and where its tensors lie.

As it is, fulmen takes numpy's arrays on the CPU. With FULMEN_TEST_DEVICE=cuda (or torch: torch's tensors on the CPU) every call's
arrays become tensors of torch with the same strides, what the call wrote goes back into the arrays, and so do its results. So one
suite tests both.
"""
import functools
import inspect
import os

import hypothesis
import numpy as np
import pytest

import fulmen as real

DEVICE = os.environ.get("FULMEN_TEST_DEVICE", "numpy")
ON_GPU = DEVICE == "cuda"
needs_cpu = pytest.mark.skipif(ON_GPU, reason="about the CPU back end or the process alone")

# Attention's dtype, and how far from float64 an output may lie: a GPU has it in 16 bits.
ATTENTION_DTYPE, NUMPY_DTYPE = ("f16", np.float16) if ON_GPU else ("f32", np.float32)
ATTENTION_CLOSE = {"rtol": 4e-3, "atol": 4e-3} if ON_GPU else {"rtol": 1e-4, "atol": 1e-5}


def context(*args, **kwargs):
    return real.Context("cuda" if ON_GPU else "cpu", *args, **kwargs)


class _Call:
    """The tensors that stand for a call's arrays."""

    def __init__(self):
        self.pairs = {}

    def there(self, x):
        if isinstance(x, np.ndarray):
            if id(x) not in self.pairs:
                self.pairs[id(x)] = x, self.tensor(x)
            return self.pairs[id(x)][1]
        if isinstance(x, real.Typed):
            bits = x.tensor.view(np.int16) if x.tensor.dtype == np.uint16 else x.tensor  # older torch has no uint16
            return real.Typed(self.there(bits), x.dtype)
        if isinstance(x, (list, tuple)):
            return type(x)(self.there(y) for y in x)
        if isinstance(x, dict):
            return {key: self.there(y) for key, y in x.items()}
        return x

    def tensor(self, x):
        import torch
        if any(step < 0 for step in x.strides):
            hypothesis.reject()  # torch has none
        span = 1 + sum((n - 1) * step // x.itemsize for n, step in zip(x.shape, x.strides)) if x.size else 0
        flat = torch.zeros(span, dtype=torch.from_numpy(x[..., :0]).dtype)
        made = flat.as_strided(x.shape, [step // x.itemsize for step in x.strides])
        made.copy_(torch.from_numpy(x))
        if not ON_GPU:
            return made
        return flat.cuda().as_strided(made.shape, made.stride())

    def back(self, x):
        import torch
        if isinstance(x, torch.Tensor):
            if x.dtype == torch.bfloat16:
                return real.Typed(x.view(torch.int16).cpu().numpy().view(np.uint16), "bf16")
            given = [array for array, tensor in self.pairs.values() if tensor is x]
            return given[0] if given else x.cpu().numpy()
        if isinstance(x, real.Typed):
            return real.Typed(self.back(x.tensor).view(np.uint16), x.dtype)
        if isinstance(x, tuple):
            return tuple(self.back(y) for y in x)
        return x

    def end(self):
        for array, tensor in self.pairs.values():
            if array.flags.writeable and array.size:
                array[...] = tensor.cpu().numpy()


def _carried(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        carry = _Call()
        args, kwargs = carry.there(args), carry.there(kwargs)
        result = function(*args, **kwargs)
        carry.end()
        return carry.back(result)
    return call


class _Attention(real.Attention):
    def run(self, *args, **kwargs):
        return _carried(super().run)(*args, **kwargs)

    def plan(self, *args, **kwargs):
        return _carried(super().plan)(*args, **kwargs)


class _Package:
    Attention = _Attention

    def __getattr__(self, name):
        found = getattr(real, name)
        return _carried(found) if inspect.isfunction(found) and found.__module__ == "fulmen.ops" else found


fulmen = real if DEVICE == "numpy" else _Package()
