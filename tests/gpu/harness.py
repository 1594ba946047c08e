"""What all checks share: the registry, Fulmen's contexts, comparison. Not a program; see check.py."""
import ctypes
import os
import sys

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.environ.get("FULMEN_CAPI_DIR", os.path.join(HERE, "../../bench/gpu")))
import capi  # noqa: E402

DEV = "cuda"
F64, BF16, F16, F32 = torch.float64, torch.bfloat16, torch.float16, torch.float32
CHECKS = []


def check(name, **cases):
    """Registers a check; with cases={name: kwargs} one per case."""
    def wrap(function):
        for case, kwargs in (cases.get("cases") or {"": {}}).items():
            CHECKS.append((f"{name} {case}".strip(), function, kwargs))
        return function
    return wrap


def stream():
    return torch.cuda.current_stream().cuda_stream


def i32(values):
    return torch.tensor(values, dtype=torch.int32, device=DEV)


def rnd(*shape, dtype=BF16, scale=1.0):
    return (torch.randn(*shape, device=DEV, dtype=F32) * scale).to(dtype)


def expect(condition, text):
    if not condition:
        raise AssertionError(text)


def bits_of(x):
    return x.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def same_bits(a, b, text):
    expect(a.shape == b.shape and torch.equal(bits_of(a), bits_of(b)), text)


def close(got, want, plain, what, floor=1e-5):
    """|got - want| <= 2 |plain - want| + floor, element by element of the worst; NaN and infinities must agree."""
    got, plain = got.to(F64), plain.to(F64)
    expect(torch.equal(torch.isnan(got), torch.isnan(want)), f"{what}: NaN differ in {(torch.isnan(got) != torch.isnan(want)).sum()} places")
    inf = torch.isinf(want)
    expect(torch.equal(got[inf], want[inf]), f"{what}: infinities differ")
    finite = torch.isfinite(want)
    if not finite.any():
        return
    error = (got - want).abs()[finite].max().item()
    allowed = 2 * (plain - want).abs()[finite].max().item() + floor * max(1.0, want[finite].abs().max().item())
    if not error <= allowed:
        where = ((got - want).abs().nan_to_num(0, 0, 0) * finite).flatten().argmax().item()
        index = [int(i) for i in torch.unravel_index(torch.tensor(where), want.shape)]
        raise AssertionError(f"{what}: error {error:.3g} > {allowed:.3g} at {index}: got {got.flatten()[where]:.6g}, want {want.flatten()[where]:.6g}")


class Env:
    """The contexts. `repeats`: how often every call is made again, from the same bytes to the same bits."""

    def __init__(self, lib, header, repeats, kernels=None):
        self.lib, self.header, self.repeats = os.path.abspath(lib), os.path.abspath(header), repeats
        self.kernels = kernels.encode() if kernels else None
        self.f = capi.Fulmen(lib, header)
        self.ctx = self.new_context()
        self.cpu = self.f.context("cpu")

    def new_context(self):
        return self.f.context("cuda", cache_dir=os.environ.get("FULMEN_CACHE_DIR", "").encode() or None, kernels_dir=self.kernels)

    def prepare(self, context, op, dtype):
        spec = self.f.new("op_spec", op=self.f.constant("OP_" + op.upper()), dtype=self.f.constant(dtype))
        self.f.check(self.f.lib.fulmen_prepare(context, ctypes.byref(spec), 1, None, None))

    def call(self, op, **members):
        args = self.f.new(op + "_args", **members)
        tensors = list(tensors_of(members))
        before = [t.clone() for t in tensors]
        self.f.call(op, self.ctx, args, stream())
        after = [t.clone() for t in tensors]
        for _ in range(self.repeats - 1):
            for t, value in zip(tensors, before):
                t.copy_(value)
            self.f.call(op, self.ctx, args, stream())
            for t, value in zip(tensors, after):
                same_bits(t, value, f"{op} differs from run to run")

    def call_cpu(self, op, **members):
        self.f.call(op, self.cpu, self.f.new(op + "_args", **members))


def tensors_of(members):
    for value in members.values():
        if isinstance(value, dict):
            yield from tensors_of(value)
        elif torch.is_tensor(value):
            yield value
