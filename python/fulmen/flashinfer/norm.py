"""Norms over the last dimension. input [n, hidden] or [n, heads, D], strided rows, float32, float16 or bfloat16."""
from .. import ops
from .._arrays import empty_like
from . import _absent
from ._api import api, refuse
from .jit import gen_norm_module

__getattr__ = _absent.lookup("norm")


def _out(out, like):
    return empty_like(like) if out is None else out


@api
def rmsnorm(input, weight, eps=1e-6, out=None, enable_pdl=None):
    """input / sqrt(mean(input^2) + eps) * weight. `out` may be input."""
    return ops.rms_norm(input, weight, eps, out=_out(out, input))


@api
def gemma_rmsnorm(input, weight, eps=1e-6, out=None, enable_pdl=None):
    """rmsnorm with 1 + weight."""
    return ops.gemma_rms_norm(input, weight, eps, out=_out(out, input))


@api
def fused_add_rmsnorm(input, residual, weight, eps=1e-6, enable_pdl=None):
    """residual += input, then input = rmsnorm(residual), both in place."""
    ops.add_rms_norm(input, residual, weight, eps)


@api
def gemma_fused_add_rmsnorm(input, residual, weight, eps=1e-6, enable_pdl=None):
    """fused_add_rmsnorm with 1 + weight."""
    ops.add_rms_norm(input, residual, weight, eps, weight_offset=1.0)


@api
def layernorm(input, gemma, beta, eps=1e-6):
    """(input - mean) / sqrt(var + eps) * gemma + beta; gemma and beta float32 or input's dtype."""
    return ops.layer_norm(input, gemma, beta, eps, out=_out(None, input))


def rmsnorm_quant(out, input, weight, scale, eps=1e-6, enable_pdl=None):
    refuse("fp8 output (rmsnorm_quant)")


def fused_add_rmsnorm_quant(out, input, residual, weight, scale, eps=1e-6, enable_pdl=None):
    refuse("fp8 output (fused_add_rmsnorm_quant)")


def layernorm_quant(out, input, gemma, beta, scale, eps=1e-6):
    refuse("fp8 output (layernorm_quant)")
