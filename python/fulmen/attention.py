"""Attention: one object per spec and limits, plan once per step, run once per layer."""
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from . import _binding
from ._arrays import Tensor, compiling, empty_like, give_name, shape_of, stream_of
from ._binding import Context

Table = Union[Tensor, Mapping[str, Tensor]]

__all__ = ["Attention", "Group"]


def Group(num_qo_heads: int, num_kv_heads: int, *, causal: bool = True, window_left: int = -1) -> Dict[str, Any]:
    """Layers that share heads, causality and window. window_left -1: unlimited."""
    return {"num_qo_heads": num_qo_heads, "num_kv_heads": num_kv_heads, "causal": causal, "window_left": window_left}


class Attention:
    """o[i] = sum_j softmax_j(logit(sm_scale q[i] . k[j])) v[j] over ragged rows and a block-sparse set of keys.

    context        fulmen.Context
    groups         list of Group: the kinds of layers that one plan serves
    dtype          "f32" | "f16" | "bf16" of q and k, v; o_dtype: the same, or "f32"
    head_dim       multiple of 8 up to 256; head_dim_vo where V differs
    max_requests, max_rows, max_kv_len   upper bounds; sizes of plan and scratch memory follow from them alone
    features       some of "soft_cap", "alibi", "sinks", "rope", "custom_mask", "no_softmax"
    variant        a variant of your own, CUDA only: (name of a struct, its source text), see docs/how-to-add-a-variant.md
    alloc          alloc(nbytes) -> a uint8 tensor on the context's device; numpy's or torch's by default
    Errors: InvalidArgument and Unsupported name the field; `fulmen.supports` says beforehand what is missing.
    Source: Dao, arXiv 2307.08691 (tiles and the running softmax); Kwon et al., arXiv 2309.06180 (pages); Ye et al., arXiv
    2501.01005 (block-sparse tables, plan and run).
    """

    def __init__(self, context: Context, groups: Sequence[Mapping[str, Any]], *, dtype: str, head_dim: int,
                 head_dim_vo: Optional[int] = None, o_dtype: Optional[str] = None, max_requests: int, max_rows: int,
                 max_kv_len: int, max_qo_len: int = 0, num_levels: int = 1, num_sms: int = 0, features: Sequence[str] = (),
                 variant: Optional[Tuple[str, str]] = None, batch_invariant: bool = False,
                 alloc: Optional[Callable[[int], Tensor]] = None):
        self.context, self.groups = context, list(groups)
        self.dtype, self.o_dtype, self.head_dim_vo = dtype, o_dtype or dtype, head_dim_vo or head_dim
        self._out_as_q = self.o_dtype == dtype and self.head_dim_vo == head_dim
        spec = {"q_dtype": dtype, "o_dtype": o_dtype, "head_dim_qk": head_dim, "head_dim_vo": head_dim_vo,
                "features": features, "batch_invariant": batch_invariant,
                "variant": None if variant is None else dict(zip(("name", "source"), variant))}
        limits = {"max_requests": max_requests, "max_rows": max_rows, "max_qo_len": max_qo_len, "max_kv_len": max_kv_len,
                  "num_levels": num_levels, "num_sms": num_sms, "groups": self.groups}
        self._handle = _binding.AttentionHandle(context, spec, limits)
        self.plan_bytes, self.scratch_bytes = self._handle.plan_bytes, self._handle.scratch_bytes
        self._id = give_name(self)
        alloc = alloc or _default_alloc(context)
        self.plan_mem, self.scratch = alloc(max(256, self.plan_bytes)), alloc(max(256, self.scratch_bytes))
        context.scratch_init(self.scratch, stream_of(self.scratch))

    def plan(self, qo_indptr: Optional[Tensor], kv_len: Optional[Tensor] = None, *, kv_page_indptr: Optional[Tensor] = None,
             last_page_len: Optional[Tensor] = None, page_size: int = 0,
             levels: Optional[List[Mapping[str, Optional[Tensor]]]] = None, stream: Optional[int] = None) -> "Attention":
        """Schedules a step. qo_indptr i32 | i64 [num_requests + 1]; kv_len [num_requests], or kv_page_indptr
        [num_requests + 1] with last_page_len and page_size. Several levels: `levels`, a list of dicts with these keys,
        shared prefixes first. Tensors may lie on the device (nothing is copied down) or on the host.

        Errors: InvalidArgument where shapes, dtypes or page_size don't fit. Offsets and lengths beyond the limits are checked
        where they are read, on the device: rows of such a request become NaN."""
        if levels is None:
            levels = [{"qo_indptr": qo_indptr, "kv_len": kv_len, "kv_page_indptr": kv_page_indptr, "last_page_len": last_page_len}]
        if compiling():
            from . import _torch_ops
            _torch_ops.attention_plan(self, levels, page_size)
            return self
        stream = stream_of(self.plan_mem) if stream is None else stream
        self._handle.plan(levels, page_size, self.plan_mem, stream)
        return self

    def run(self, q: Tensor, k: Tensor, v: Tensor, tables: Union[Table, Sequence[Table]], *, out: Optional[Tensor] = None,
            lse: Optional[Tensor] = None, return_lse: bool = False, group: int = 0, v_tables: Optional[Sequence[Table]] = None,
            sm_scale: float = 0.0, logits_soft_cap: float = 0.0, alibi_slopes: Optional[Tensor] = None,
            sinks: Optional[Tensor] = None, mask: Optional[Tensor] = None, mask_indptr: Optional[Tensor] = None,
            rope: Optional[Mapping[str, Any]] = None, variant_params: Any = None, o_scale: float = 0.0, lse_base2: bool = False,
            scratch: Optional[Tensor] = None, stream: Optional[int] = None) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        """One layer. -> o [num_rows, num_qo_heads, head_dim_vo], or (o, lse) with return_lse.

        q       [num_rows, num_qo_heads, head_dim]
        k, v    [num_pages, page_size, num_kv_heads, head_dim] (HND: a permuted view), or ragged [num_rows, ...]
        tables  of each level (one without levels): a 2-D block table i32 | i64 [num_requests, max_pages], a dict with
                table and indptr (CSR) or table and row_index; ragged: {"indptr": ...} that counts rows
        mask    u8 bits, little-endian, with mask_indptr in bytes ("custom_mask"); rope: a dict as in fulmen.rope
        lse     f32 [num_rows, num_qo_heads], natural logarithm, or base 2 with lse_base2
        o_scale the finished output is multiplied by it; 0: 1
        variant_params  the variant's Params as bytes, or what bytes() takes: a ctypes.Structure, a numpy record
        A row that sees no key gives zeros and LSE -inf.
        Errors: InvalidArgument where shapes, dtypes, strides, devices or tables don't fit, or the plan isn't this handle's. A
        page outside the cache gives NaN rows.
        """
        if out is None:
            out = empty_like(q) if self._out_as_q else empty_like(q, (*shape_of(q)[:2], self.head_dim_vo), self.o_dtype)
        if return_lse and lse is None:
            lse = empty_like(q, shape_of(q)[:2], "f32")
        k_shape = shape_of(k)
        if compiling():
            from . import _torch_ops
            run = _torch_ops.attention_run(self)
        else:
            run = self._handle.run
            stream = stream_of(q) if stream is None else stream
        # By position: names would take a third of the binding's time.
        run(q, k, v, out, list(tables) if isinstance(tables, (list, tuple)) else [tables], self.plan_mem,
            self.scratch if scratch is None else scratch, lse, None if v_tables is None else list(v_tables), group,
            k_shape[1] if len(k_shape) == 4 else 1, sm_scale, logits_soft_cap, alibi_slopes, sinks, mask, mask_indptr, rope,
            None if variant_params is None else bytes(variant_params), o_scale, lse_base2, stream)
        return (out, lse) if return_lse else out


def _default_alloc(context: Context) -> Callable[[int], Tensor]:
    if context.device == "cpu":
        import numpy

        def alloc(nbytes):  # 256-byte aligned, as the sizes are
            raw = numpy.zeros(nbytes + 256, numpy.uint8)
            start = -raw.ctypes.data % 256
            return raw[start:start + nbytes]
        return alloc
    import sys
    torch = sys.modules.get("torch")
    if torch is None:
        raise TypeError("alloc: expected a function for device memory (torch is not loaded)")
    return lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8, device=f"cuda:{context.device_index}")
