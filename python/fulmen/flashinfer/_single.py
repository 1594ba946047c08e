"""Attention of a single request, for the functions that take neither plan nor wrapper."""
import torch

from .._arrays import compiling
from ._attention import attend, check_dtypes
from ._plain import single_batch


def attend_single(options, q, k, v, *, out_dtype=None, return_lse=False, v_scale=None):
    """-> out, or (out, lse in base 2). q [rows, Hq, D]; k, v [keys, Hkv, D]. While torch.compile traces it is one op."""
    if not compiling():
        batch, table = single_batch(q.device, q.shape[0], k.shape[0])
        return attend(batch, options, q, k, v, table, out_dtype=out_dtype, return_lse=return_lse, v_scale=v_scale)
    from . import _traced
    check_dtypes(q.dtype, k.dtype, out_dtype or q.dtype)
    out = q.new_empty((*q.shape[:2], v.shape[-1]), dtype=out_dtype)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    in_kernel = v_scale is None or isinstance(v_scale, (int, float))
    _traced.single_run(options, q, k, v, out, lse, v_scale if in_kernel else None)
    if not in_kernel:
        out.mul_(v_scale)
    return (out, lse) if return_lse else out
