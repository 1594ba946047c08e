"""Merges of attention states with LSE in base 2. Shapes: v [n, H, D], s [n, H]; merge_states: [n, parts, ...]."""
import torch

from .. import ops
from .._arrays import compiling
from ._api import api


def _f32(s):
    return s if s.dtype == torch.float32 else s.to(torch.float32)


@api
def merge_state(v_a, s_a, v_b, s_b):
    """Joins two states over disjoint keys. -> (v, s)"""
    return ops.merge_state(v_a, _f32(s_a), v_b, _f32(s_b), lse_base2=True)


@api
def merge_state_in_place(v, s, v_other, s_other, mask=None):
    """Joins a second state into (v, s). mask bool [n]: rows that are False keep what they had."""
    if mask is None and s.dtype == torch.float32 and v.stride(-1) == 1 and not compiling():  # a graph's op has no such aliases
        ops.merge_state(v, s, v_other, _f32(s_other), out=v, lse=s, lse_base2=True)
        return
    joined, lse = ops.merge_state(v, _f32(s), v_other, _f32(s_other), lse_base2=True)
    if mask is not None:
        mask = mask.to(torch.bool)
        joined, lse = torch.where(mask[:, None, None], joined, v), torch.where(mask[:, None], lse, s)
    v.copy_(joined)
    s.copy_(lse)


@api
def merge_states(v, s):
    """Joins the parts v [n, parts, H, D], s [n, parts, H] of each row. -> (v [n, H, D], s [n, H])"""
    return ops.merge_states(v.transpose(0, 1), _f32(s).transpose(0, 1), lse_base2=True)
