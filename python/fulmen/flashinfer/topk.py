"""The largest values of each row."""
import enum

import torch

from .. import ops
from . import _absent
from ._api import api

__getattr__ = _absent.lookup("topk")


class TopKTieBreak(enum.IntEnum):
    """Which of equal values at the threshold are taken: any, the lowest indices, the highest."""
    NONE = 0
    SMALL = 1
    LARGE = 2


def can_implement_filtered_topk():
    """Whether tie_break is honoured: always."""
    return True


@api
def top_k(input, k, sorted=False, deterministic=False, tie_break=TopKTieBreak.NONE, dsa_graph_safe=False):
    """The k largest of each row of input [n, V]. -> (values [n, k], indices int64 [n, k]), the same bits every time.

    sorted: descending. Ties are broken by the lowest index unless tie_break is LARGE."""
    if input.dim() != 2:
        raise ValueError(f"input: expected 2 dimensions, found {input.dim()}")
    if k == input.shape[1] and not sorted:
        return input.clone(), torch.arange(k, device=input.device).repeat(input.shape[0], 1)
    if TopKTieBreak(tie_break) != TopKTieBreak.LARGE:
        values, indices = ops.top_k(input, k)
        return values, indices.long()
    values, indices = ops.top_k(input.flip(-1), k)
    indices = input.shape[-1] - 1 - indices.long()
    # Unsorted results keep equal values in ascending order of index.
    return (values, indices) if sorted else (values.flip(-1), indices.flip(-1))
