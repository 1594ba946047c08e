"""The merges under the names of FlashInfer's Triton module."""
import torch

from .. import _merge
from .._api import api
from .._merge import merge_state, merge_state_in_place, merge_states


@api
def variable_length_merge_states(v, s, indptr):
    """Joins rows indptr[i] .. indptr[i + 1] of v [rows, H, D], s [rows, H]. -> (v [n, H, D], s [n, H])"""
    rows, count = v.shape[0], indptr.numel() - 1
    # Rows beyond a segment's end are states over no key. The width that is safe without asking the device is `rows`.
    width = int(torch.diff(indptr).max()) if indptr.device.type == "cpu" else rows
    at = indptr[:-1, None].long() + torch.arange(max(width, 1), device=v.device)
    inside = at < indptr[1:, None]
    at = at.clamp_(max=max(rows - 1, 0))
    parts_s = torch.where(inside[..., None], s[at].float(), float("-inf"))
    parts_v = torch.where(inside[..., None, None], v[at], 0)
    return _merge.merge_states.__wrapped__(parts_v, parts_s)
