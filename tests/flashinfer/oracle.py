"""Compares the calls that a test makes with float64 references of the harness's own.

A case is good only if upstream's own assertions pass and no call differs from the reference. `mutant="zeros"` replaces
every result by zeros before both look at it: nearly all cases that compare values must then fail.
"""
import functools
import inspect
import math

import torch

TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 2e-2, torch.float32: 2e-4}
CHECKS_PER_CASE = 3  # of one function: some tests call it thousands of times


def spread(n, most, device=None):
    """At most `most` of 0 .. n - 1, first and last included."""
    if n <= most:
        return torch.arange(n, device=device)
    return torch.linspace(0, n - 1, most, dtype=torch.float64, device=device).round().long().unique()


class Oracle:
    def __init__(self, mutant=None):
        self.mutant = mutant
        self.wrapped = []
        self.begin()

    def begin(self):
        """A new case."""
        self.compared, self.faults, self.counts, self.depth, self.random = 0, [], {}, 0, None

    # -------------------------------------------------------------------------------------- comparing
    def require(self, what, holds, tells=True):
        """tells: whether zeros would be wrong, so that the case counts as one that compares values."""
        self.compared += bool(tells)
        if not holds and len(self.faults) < 5:
            self.faults.append(what)

    def compare(self, what, actual, expected, dtype=None, tolerance=None, absolute=None):
        """Elementwise: |actual - expected| <= tolerance (|expected| + rms(expected)); infinities and NaN agree."""
        self.compared += bool((expected != 0).any())
        dtype = dtype or actual.dtype
        tolerance = tolerance or TOLERANCE.get(dtype, 2e-4)
        if tuple(actual.shape) != tuple(expected.shape):
            self.faults.append(f"{what}: expected shape {tuple(expected.shape)}, found {tuple(actual.shape)}")
            return
        if expected.numel() == 0:
            return
        actual, expected = actual.double(), expected.double()
        if dtype in (torch.float16, torch.bfloat16):
            expected = torch.where(expected.abs() > torch.finfo(dtype).max, expected.sign() * math.inf, expected)
        finite = torch.isfinite(expected)
        same = torch.where(finite, torch.isfinite(actual), (actual == expected) | (actual.isnan() & expected.isnan()))
        size = torch.where(finite, expected, 0.0)
        limit = tolerance * size.abs() + (absolute if absolute is not None else tolerance * size.square().mean().sqrt())
        wrong = ~same | (finite & ((actual - expected).abs() > limit + 1e-12))
        if wrong.any() and len(self.faults) < 5:
            at = tuple(int(i) for i in wrong.nonzero()[0])
            self.faults.append(f"{what}: {int(wrong.sum())} of {wrong.numel()} differ, first at {at}: "
                               f"expected {float(expected[at]):.6g}, found {float(actual[at]):.6g}")

    # -------------------------------------------------------------------------------------- wrapping calls
    def _busy(self):
        return self.depth > 0 or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())

    def _mutate(self, *results):
        for x in results:
            if isinstance(x, (tuple, list)):
                self._mutate(*x)
            elif isinstance(x, torch.Tensor) and not x.is_inference():
                x.zero_()

    def watch(self, function, name, check, changes=(), like=None):
        """A stand-in for `function` that runs check(oracle, arguments, result) after it.

        changes: names of arguments that are written; arguments["before"][name] then holds a copy of what they were.
        like: the function whose parameters it passes on."""
        signature = inspect.signature(like or function)

        @functools.wraps(function)
        def call(*args, **kwargs):
            if self._busy():
                result = function(*args, **kwargs)
                if self.mutant and self.depth == 0:
                    self._mutate(result)
                return result
            a = signature.bind(*args, **kwargs)
            a.apply_defaults()
            a = dict(a.arguments)
            self.counts[name] = self.counts.get(name, 0) + 1
            checked = self.counts[name] <= CHECKS_PER_CASE and check is not None
            if checked:
                a["before"] = {n: a[n].clone() for n in changes if isinstance(a.get(n), torch.Tensor)}
            self.depth += 1
            try:
                result = function(*args, **kwargs)
                if self.mutant:
                    self._mutate(result, *(a[n] for n in changes))
                if checked:
                    check(self, a, result)
            finally:
                self.depth -= 1
            return result

        return call

    def patch(self, owner, name, check, changes=(), like=None):
        """Wraps owner.name, and the same object where the top-level module offers it."""
        import fulmen.flashinfer as top
        original = getattr(owner, name)
        label = f"{getattr(owner, '__name__', owner)}.{name}".replace("fulmen.flashinfer.", "")
        stand_in = self.watch(original, label, check, changes, like)
        setattr(owner, name, stand_in)
        if not inspect.isclass(owner) and getattr(top, name, None) is original:
            setattr(top, name, stand_in)
        self.wrapped.append(label)
        return stand_in
