"""Fulmen: attention, KV-cache and sampling kernels for serving large language models.

    att = fulmen.Attention(fulmen.Context("cuda"), [fulmen.Group(32, 8)], dtype="bf16", head_dim=128,
                           max_requests=64, max_rows=64, max_kv_len=8192)
    att.plan(qo_indptr, kv_len)                 # once a step
    o = att.run(q, k_cache, v_cache, table)     # once a layer

Tensors are numpy's, torch's or any with `__dlpack__`. torch is never imported, CUDA never initialised by the import.
"""
import json as _json
from typing import Any as _Any, Mapping as _Mapping, Optional as _Optional

from . import _nvrtc

_nvrtc.announce()

from . import _binding  # noqa: E402
from ._binding import Context, FulmenError, InvalidArgument, OPS, Typed, Unsupported  # noqa: E402
from ._prepare import prepare  # noqa: E402
from .attention import Attention, Group  # noqa: E402
from .ops import *  # noqa: E402, F403
from .ops import __all__ as _ops  # noqa: E402

__version__ = _binding.version()
__all__ = ["Attention", "Context", "FulmenError", "Group", "InvalidArgument", "OPS", "Typed", "Unsupported", "explain",
           "info", "prepare", "seal", "supports", *_ops]


def supports(target: str, op: str, dtype: str = "f16", spec: _Optional[_Mapping[str, _Any]] = None,
             limits: _Optional[_Mapping[str, _Any]] = None) -> str:
    """"" where `op` runs on `target` ("cpu", "cuda", "sm_90a"), else what is missing."""
    return _binding.supports(target, op, dtype, spec, limits)


def explain(target: str, op: str, dtype: str = "f16", spec: _Optional[_Mapping[str, _Any]] = None,
            limits: _Optional[_Mapping[str, _Any]] = None) -> dict:
    """Which kernel, tile and split would run, what it should cost, and why the alternatives were refused."""
    return _json.loads(_binding.explain(target, op, dtype, spec, limits))


def info() -> dict:
    """Versions, devices, compiler candidates, cache, and what runs where. Initialises CUDA."""
    return _json.loads(_binding.info())


def seal(context: Context) -> None:
    """After this a call on the context that would have to compile a kernel raises FulmenError instead."""
    context.seal()
