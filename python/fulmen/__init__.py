"""Fulmen: attention, KV-cache and sampling kernels for serving large language models."""
import json as _json

from . import _binding
from ._binding import Context, FulmenError, InvalidArgument, OPS, Typed, Unsupported
from .attention import Attention, Group
from .ops import *  # noqa: F403
from .ops import __all__ as _ops

__version__ = _binding.version()
__all__ = ["Attention", "Context", "FulmenError", "Group", "InvalidArgument", "OPS", "Typed", "Unsupported", "explain",
           "info", "supports", *_ops]


def supports(target, op, dtype="f16", spec=None, limits=None):
    """"" where `op` runs on `target` ("cpu", "cuda", "sm_90a"), else what is missing."""
    return _binding.supports(target, op, dtype, spec, limits)


def explain(target, op, dtype="f16", spec=None, limits=None):
    """Which kernel, tile and split would run, what it should cost, and why the alternatives were refused: a dict."""
    return _json.loads(_binding.explain(target, op, dtype, spec, limits))


def info():
    """Versions, devices, compiler candidates, cache, and what runs where: a dict."""
    return _json.loads(_binding.info())
