"""Gated activations: the first half of the last dimension, activated, times the second half."""
import torch

from .. import ops
from . import _absent
from ._api import api
from .jit import gen_act_and_mul_module

__getattr__ = _absent.lookup("activation")



def _gated(function, input, out):
    width = input.shape[-1]
    if width % 2:
        raise ValueError(f"input: expected an even last dimension, found {width}")
    shape = (*input.shape[:-1], width // 2)
    if out is None:
        out = torch.empty(shape, dtype=input.dtype, device=input.device)
    elif tuple(out.shape) != shape:
        raise ValueError(f"out: expected shape {shape}, found {tuple(out.shape)}")
    if input.numel():
        function(input.reshape(-1, width), out=out.view(-1, width // 2))
    return out


@api
def silu_and_mul(input, out=None, enable_pdl=None):
    """silu(input[..., :d]) * input[..., d:]"""
    return _gated(ops.silu_and_mul, input, out)


@api
def gelu_and_mul(input, out=None, enable_pdl=None):
    """gelu(input[..., :d]) * input[..., d:], by the error function."""
    return _gated(ops.gelu_and_mul, input, out)


@api
def gelu_tanh_and_mul(input, out=None, enable_pdl=None):
    """gelu(input[..., :d]) * input[..., d:], by the tanh approximation."""
    return _gated(ops.gelu_tanh_and_mul, input, out)
