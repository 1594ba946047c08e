"""The merges under the names of FlashInfer's Triton module."""
import torch

from .._api import api
from .._merge import merge_state, merge_state_in_place, merge_states


@api
def variable_length_merge_states(v, s, indptr):
    """Joins rows indptr[i] .. indptr[i + 1] of v [rows, H, D], s [rows, H]. -> (v [n, H, D], s [n, H])"""
    count, offsets = indptr.numel() - 1, indptr.long()
    top = _by_segment(s.float(), "max", offsets)
    segment = torch.searchsorted(offsets[1:].contiguous(), torch.arange(s.shape[0], device=s.device), right=True)
    weight = torch.exp2(s.float() - top[segment.clamp(max=count - 1)]).nan_to_num(0.0)
    total = _by_segment(weight, "sum", offsets)
    joined = _by_segment(weight[..., None] * v.float(), "sum", offsets) / total[..., None]
    return joined.nan_to_num(0.0).to(v.dtype), top + torch.log2(total)


def _by_segment(x, how, offsets):
    return torch.segment_reduce(x, how, offsets=offsets, axis=0, unsafe=True)
