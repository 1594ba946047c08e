"""Merges of attention states with LSE in base 2. Shapes: v [n, H, D], s [n, H]; merge_states: [n, parts, ...]."""
import math

import torch

from .. import ops
from ._api import api

LN2, LOG2E = math.log(2.0), math.log2(math.e)


def _natural(s):
    return s.to(torch.float32) * LN2


@api
def merge_state(v_a, s_a, v_b, s_b):
    """Joins two states over disjoint keys. -> (v, s)"""
    v, s = ops.merge_state(v_a, _natural(s_a), v_b, _natural(s_b))
    return v, s.mul_(LOG2E)


@api
def merge_state_in_place(v, s, v_other, s_other, mask=None):
    """Joins a second state into (v, s). mask bool [n]: rows that are False keep what they had."""
    joined, lse = ops.merge_state(v, _natural(s), v_other, _natural(s_other))
    lse = lse.mul_(LOG2E)
    if mask is not None:
        mask = mask.to(torch.bool)
        joined, lse = torch.where(mask[:, None, None], joined, v), torch.where(mask[:, None], lse, s)
    v.copy_(joined)
    s.copy_(lse)


@api
def merge_states(v, s):
    """Joins the parts v [n, parts, H, D], s [n, parts, H] of each row. -> (v [n, H, D], s [n, H])"""
    v, s = ops.merge_states(v.transpose(0, 1), _natural(s).transpose(0, 1))
    return v, s.mul_(LOG2E)
