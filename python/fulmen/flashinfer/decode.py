"""Decode attention: one query row, or a few, for each request over a paged cache."""
import functools
import warnings

import torch

from .._arrays import compiling
from . import _absent
from ._api import api, refuse
from ._attention import (Bounds, Options, as_nhd, bound_steps, check_layout, check_pos_encoding_mode, on_host,
                         paged_lengths, unpack_paged)
from ._plain import trtllm_batch_decode_with_kv_cache, xqa_batch_decode_with_kv_cache
from ._single import attend_single
from ._wrapper import BatchWrapper, csr, scaled, wants_invariance
from .jit import gen_batch_decode_module, gen_single_decode_module

_OPTIONS = {  # of plan, after page_size; the first sixteen also come by position
    "pos_encoding_mode": "NONE", "window_left": -1, "logits_soft_cap": None, "q_data_type": "float16", "kv_data_type": None,
    "o_data_type": None, "data_type": None, "sm_scale": None, "rope_scale": None, "rope_theta": None, "non_blocking": True,
    "block_tables": None, "seq_lens": None, "fixed_split_size": None, "disable_split_kv": False, "q_len_per_req": 1,
    "window_right": 0, "is_causal": None}
_POSITIONAL = list(_OPTIONS)[:16]


def _plan_options(positional, named):
    if len(positional) > len(_POSITIONAL):
        raise TypeError(f"plan() takes at most {len(_POSITIONAL)} options by position, found {len(positional)}")
    options = dict(_OPTIONS)
    if positional:
        warnings.warn("plan: options after page_size are to be given by name", DeprecationWarning, stacklevel=3)
    for name, value in zip(_POSITIONAL, positional):
        if name in named:
            raise TypeError(f"plan() got multiple values for argument {name!r}")
        options[name] = value
    options.update(named)
    if len(options) > len(_OPTIONS):
        raise TypeError(f"plan() got an unexpected keyword argument {next(n for n in named if n not in _OPTIONS)!r}")
    return options


def _get_range_buf(n, device):
    """0 .. n - 1 as int32."""
    return torch.arange(n, dtype=torch.int32, device=device)


class BatchDecodeWithPagedKVCacheWrapper(BatchWrapper):
    """plan() once a step, run() once a layer: q [B * q_len_per_req, Hq, D] over the pages of B requests.

    A row of length 0 gives zeros and LSE -inf. In graph mode the three index buffers are the caller's and B is fixed."""

    _aligned_workspaces = True

    def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, use_tensor_cores=False,
                 paged_kv_indptr_buffer=None, paged_kv_indices_buffer=None, paged_kv_last_page_len_buffer=None,
                 backend="auto", jit_args=None):
        super().__init__(float_workspace_buffer, kv_layout, use_cuda_graph, backend, jit_args)
        self._use_tensor_cores = use_tensor_cores or backend == "fa3"
        self._paged_kv_indptr_buf = paged_kv_indptr_buffer
        self._paged_kv_indices_buf = paged_kv_indices_buffer
        self._paged_kv_last_page_len_buf = paged_kv_last_page_len_buffer
        self._q_len_per_req, self._qo_indptr_buf, self._rows = 1, None, None
        if use_cuda_graph:
            for name in ("paged_kv_indptr_buffer", "paged_kv_indices_buffer", "paged_kv_last_page_len_buffer"):
                if not isinstance(getattr(self, f"_{name}"[:-3]), torch.Tensor):
                    raise ValueError(f"{name} should be a torch.Tensor in cudagraph mode")
            self._fixed_batch_size = len(paged_kv_last_page_len_buffer)
            if len(paged_kv_indptr_buffer) != self._fixed_batch_size + 1:
                raise ValueError("The size of paged_kv_indptr_buffer should be batch_size + 1")

    @property
    def use_tensor_cores(self):
        return self._use_tensor_cores

    @api
    def plan(self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size,
             *deprecated_positional_args, **kwargs):
        """Schedules a step. indptr [B + 1], indices, last_page_len [B]: the page table, on the host or the device."""
        asked = (num_qo_heads, num_kv_heads, head_dim, page_size, *kwargs, *kwargs.values())
        again = not deprecated_positional_args and self._asks_again(asked)
        self._check_batch_size(last_page_len.shape[0])
        if not again:
            o = _plan_options(deprecated_positional_args, kwargs)
            if o["data_type"] is not None:
                o["q_data_type"] = o["data_type"] if o["q_data_type"] is None else o["q_data_type"]
                o["kv_data_type"] = o["data_type"] if o["kv_data_type"] is None else o["kv_data_type"]
            self._check_q_len(o)
            self._set_dtypes(o["q_data_type"] or "float16", o["kv_data_type"], o["o_data_type"])
            self._set_decode_options(o, o["q_len_per_req"])
            asked = None if deprecated_positional_args else asked
        if self._q_len_per_req > 1:
            self._check_lengths(indptr, last_page_len, page_size)
        bound = self._key_bound(indptr, indices, page_size)
        indptr, _, last_page_len = self._indices(
            _paged_kv_indptr_buf=indptr, _paged_kv_indices_buf=indices, _paged_kv_last_page_len_buf=last_page_len)
        self._plan(indptr, last_page_len, bound, page_size, (num_qo_heads, num_kv_heads, head_dim, head_dim), asked, again)

    begin_forward = plan

    def _check_q_len(self, o):
        q_len = o["q_len_per_req"]
        if q_len < 1:
            raise ValueError(f"q_len_per_req: expected at least 1, found {q_len}")
        if q_len > 1 and not self._use_tensor_cores:
            raise ValueError(f"q_len_per_req={q_len} requires use_tensor_cores=True")
        if o["is_causal"] is not None and bool(o["is_causal"]) != (q_len > 1):
            refuse(f"decode with is_causal={o['is_causal']} and q_len_per_req={q_len}")
        if o["window_right"] != 0:
            refuse("window_right")
        if self._use_cuda_graph and self._plan_info is not None and q_len != self._q_len_per_req:
            raise ValueError(f"q_len_per_req is frozen at {self._q_len_per_req} by the first plan in cudagraph mode, found {q_len}")

    def _check_lengths(self, indptr, last_page_len, page_size):
        if on_host(indptr, last_page_len) and len(last_page_len):
            if int(paged_lengths(indptr, last_page_len, page_size).min()) < self._q_len_per_req:
                raise ValueError(f"q_len_per_req={self._q_len_per_req}: expected at least as many keys in every request, found one "
                                 "whose first rows have an empty KV range")

    def _set_decode_options(self, o, q_len):
        self._set_options(causal=q_len > 1, pos_encoding_mode=o["pos_encoding_mode"], window_left=o["window_left"],
                          logits_soft_cap=o["logits_soft_cap"], sm_scale=o["sm_scale"], rope_scale=o["rope_scale"],
                          rope_theta=o["rope_theta"])
        self._set(_batch_invariant=wants_invariance(o["fixed_split_size"], o["disable_split_kv"]), _q_len_per_req=q_len,
                  _block_tables=o["block_tables"])

    def _key_bound(self, indptr, indices, page_size):
        """Of a request: in graph mode what the buffer can name."""
        if self._use_cuda_graph:
            return self._paged_kv_indices_buf.numel() * page_size
        return bound_steps(indptr, indices.numel()) * page_size

    def _plan(self, indptr, last_page_len, key_bound, page_size, heads, asked=None, again=False):
        batch_size, q_len = last_page_len.numel(), self._q_len_per_req
        if self._rows != (batch_size, q_len):  # a graph reads it: it stays where it is
            self._qo_indptr_buf, self._rows = _get_range_buf(batch_size + 1, self.device) * q_len, (batch_size, q_len)
        if indptr.shape[0] != batch_size + 1:
            indptr = indptr[:batch_size + 1]
        self._set_batch(self._qo_indptr_buf, {"kv_page_indptr": indptr, "last_page_len": last_page_len},
                        Bounds(max(1, batch_size), max(1, batch_size) * q_len, q_len, key_bound), page_size, heads, again)
        self._prepare(asked, again)

    def _plan_from_module(self, float_ws, int_ws, pinned_ws, *args):
        """Upstream's module as engines call it: the caller has filled the wrapper's buffers. With tensor cores it is
        prefill's module, which takes lengths twice."""
        if len(args) == 12:
            _, batch_size, hq, hk, page_size, _, window_left, _, d_qk, d_vo, _, _ = args
        else:
            _, _, _, _, batch_size, hq, hk, page_size, _, d_qk, d_vo, _, window_left, *_ = args
        self._window_left = window_left
        self._plan(self._paged_kv_indptr_buf, self._paged_kv_last_page_len_buf[:batch_size],
                   self._paged_kv_indices_buf.numel() * page_size, page_size, (hq, hk, d_qk, d_vo))
        return self._plan_info

    @api
    def run(self, q, paged_kv_cache, *args, q_scale=None, k_scale=None, v_scale=None, out=None, lse=None, return_lse=False,
            enable_pdl=None, window_left=None, sinks=None, q_len_per_req=None, skip_softmax_threshold_scale_factor=None,
            kv_cache_sf=None):
        """-> out [B * q_len_per_req, Hq, D], or (out, lse [.., Hq] in base 2)."""
        given = q_scale, k_scale, v_scale, window_left, q_len_per_req, kv_cache_sf
        if self._ready is not None and not args and not compiling():
            result = self._again(given, q, paged_kv_cache, None, out, lse, return_lse, sinks)
            if result is not None:
                return result
        k, v = unpack_paged(paged_kv_cache, self._kv_layout)
        self._check_run(q, k, window_left, kv_cache_sf)
        if q_len_per_req is not None and q_len_per_req != self._q_len_per_req:
            raise ValueError(f"q_len_per_req: expected the planned {self._q_len_per_req}, found {q_len_per_req}")
        batch_size = self._plan_info.num_requests
        if q.shape[0] != batch_size * self._q_len_per_req:
            raise ValueError(f"q: expected {batch_size} * {self._q_len_per_req} rows (q_len_per_req of the plan), "
                             f"found {q.shape[0]}")
        return self._run(q, k, v, csr(self._paged_kv_indptr_buf, self._paged_kv_indices_buf), args, q_scale=q_scale,
                         k_scale=k_scale, v_scale=v_scale, out=out, lse=lse, return_lse=return_lse, sinks=sinks, given=given)

    run_return_lse = functools.partialmethod(run, return_lse=True)

    def forward(self, q, paged_kv_cache, pos_encoding_mode="NONE", q_scale=None, k_scale=None, v_scale=None, window_left=-1,
                logits_soft_cap=None, sm_scale=None, rope_scale=None, rope_theta=None, return_lse=False):
        """Older clients' run: its own options replace the planned ones."""
        self._set_options(causal=self._causal, pos_encoding_mode=pos_encoding_mode, window_left=window_left,
                          logits_soft_cap=logits_soft_cap, sm_scale=sm_scale, rope_scale=rope_scale, rope_theta=rope_theta)
        return self.run(q, paged_kv_cache, q_scale=q_scale, k_scale=k_scale, v_scale=v_scale, return_lse=return_lse)

    forward_return_lse = functools.partialmethod(forward, return_lse=True)


class CUDAGraphBatchDecodeWithPagedKVCacheWrapper(BatchDecodeWithPagedKVCacheWrapper):
    """The graph mode as a class: buffers given, batch size fixed."""

    def __init__(self, workspace_buffer, indptr_buffer, indices_buffer, last_page_len_buffer, kv_layout="NHD",
                 use_tensor_cores=False):
        super().__init__(workspace_buffer, kv_layout, True, use_tensor_cores, indptr_buffer, indices_buffer, last_page_len_buffer)


@api
def fast_decode_plan(self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size,
                     pos_encoding_mode="NONE", window_left=-1, logits_soft_cap=None, q_data_type=None, kv_data_type=None,
                     data_type=None, sm_scale=None, rope_scale=None, rope_theta=None, non_blocking=True, fixed_split_size=None,
                     disable_split_kv=False, q_len_per_req=1, global_override_indptr_cpu=None):
    """plan() of engines that keep the index tensors on the device: in graph mode nothing is copied (the caller has filled
    the buffers), else the tensors given are adopted."""
    if q_len_per_req > 1 and (self._plan_info is None or self._q_len_per_req != q_len_per_req):
        raise ValueError(f"fast_decode_plan with q_len_per_req={q_len_per_req} requires a prior plan() with the same one")
    o = dict(_OPTIONS, pos_encoding_mode=pos_encoding_mode, window_left=window_left, logits_soft_cap=logits_soft_cap,
             sm_scale=sm_scale, rope_scale=rope_scale, rope_theta=rope_theta, fixed_split_size=fixed_split_size,
             disable_split_kv=disable_split_kv, q_len_per_req=q_len_per_req)
    q_data_type = q_data_type or data_type or self._cached_q_data_type or "float16"
    kv_data_type = kv_data_type or data_type or q_data_type
    asked = (num_qo_heads, num_kv_heads, head_dim, page_size, q_data_type, kv_data_type, *o.values())
    again = self._asks_again(asked)
    self._check_batch_size(last_page_len.shape[0])
    if not again:
        self._set_dtypes(q_data_type, kv_data_type, None)
        self._set_decode_options(o, q_len_per_req)
    if not self._use_cuda_graph:
        self._indices(_paged_kv_indptr_buf=indptr, _paged_kv_indices_buf=indices, _paged_kv_last_page_len_buf=last_page_len)
    self._plan(self._paged_kv_indptr_buf, self._paged_kv_last_page_len_buf, self._paged_kv_indices_buf.numel() * page_size,
               page_size, (num_qo_heads, num_kv_heads, head_dim, head_dim), asked, again)


@api
def single_decode_with_kv_cache(q, k, v, kv_layout="NHD", pos_encoding_mode="NONE", use_tensor_cores=False, q_scale=None,
                                k_scale=None, v_scale=None, window_left=-1, logits_soft_cap=None, sm_scale=None,
                                rope_scale=None, rope_theta=None, return_lse=False):
    """One row: q [Hq, D], k, v [kv_len, Hkv, D] or HND. -> out [Hq, D], or (out, lse [Hq] in base 2)."""
    check_layout(kv_layout)
    check_pos_encoding_mode(pos_encoding_mode)
    k, v = as_nhd(k, kv_layout), as_nhd(v, kv_layout)
    options = Options(window_left=window_left, logits_soft_cap=logits_soft_cap, pos_encoding_mode=pos_encoding_mode,
                      sm_scale=scaled(sm_scale, q.shape[-1], q_scale, k_scale), rope_scale=rope_scale, rope_theta=rope_theta)
    out, lse = attend_single(options, q.unsqueeze(0), k, v, return_lse=True, v_scale=v_scale)
    return (out[0], lse[0]) if return_lse else out[0]


__getattr__ = _absent.lookup("decode")
