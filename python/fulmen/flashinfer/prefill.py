"""Prefill attention: ragged query rows over a paged cache, over ragged keys, or of a single request."""
import functools

import torch

from .. import _binding
from .._arrays import compiling
from . import _absent
from ._api import api, refuse
from ._attention import (Bounds, Options, as_nhd, bound_lengths, bound_steps, check_layout, check_pos_encoding_mode,
                         fill, on_host, pack_mask, paged_lengths, prefix_sum, to_dtype, unpack_paged, _UNKNOWN_ROWS)
from ._items import ItemMask
from ._plain import trtllm_batch_context_with_kv_cache
from ._single import attend_single
from ._wrapper import UNKNOWN_KEYS, BatchWrapper, csr, scaled, wants_invariance
from .jit import gen_batch_prefill_module, gen_single_prefill_module


class _PrefillWrapper(BatchWrapper):
    """Rows, masks and graph limits, whatever the keys lie in."""

    def __init__(self, float_workspace_buffer, kv_layout, use_cuda_graph, qo_indptr_buf, custom_mask_buf, mask_indptr_buf,
                 backend, jit_args, jit_kwargs, variant_owns_mask):
        super().__init__(float_workspace_buffer, kv_layout, use_cuda_graph, backend, jit_args)
        if variant_owns_mask and jit_args is None:
            raise ValueError("variant_owns_mask requires jit_args")
        self._qo_indptr_buf, self._custom_mask_buf, self._mask_indptr_buf = qo_indptr_buf, custom_mask_buf, mask_indptr_buf
        self._item_mask = None
        if use_cuda_graph:
            if not isinstance(qo_indptr_buf, torch.Tensor):
                raise ValueError("qo_indptr_buf should be a torch.Tensor in CUDA graph mode")
            self._fixed_batch_size = len(qo_indptr_buf) - 1

    def _require_buffers(self, **buffers):
        if not self._use_cuda_graph:
            return
        for name, (buffer, size) in buffers.items():
            if not isinstance(buffer, torch.Tensor):
                raise ValueError(f"{name} should be a torch.Tensor in CUDA graph mode")
            if size is not None and len(buffer) != size:
                raise ValueError(f"The length of {name} should be {size}, found {len(buffer)}")

    def _row_bounds(self, qo_indptr, key_bound, uniform_q_len):
        """Bounds of the step; in graph mode those of the first plan, which later ones keep to."""
        rows = longest = None
        if not qo_indptr.is_cuda:
            rows, longest = _binding.last_and_longest_step(qo_indptr)
        if rows != self._qo_indptr_last:
            self._set(_qo_indptr_last=rows)
        if self._use_cuda_graph:
            if self._max_total_num_rows is None:
                self._max_total_num_rows = rows
            elif rows is not None and rows > self._max_total_num_rows:
                raise ValueError(f"The total number of rows in qo_indptr {rows} in cuda graph mode cannot exceed the number "
                                 f"of rows set during initialization {self._max_total_num_rows}.")
            rows, longest = self._max_total_num_rows, uniform_q_len
        rows = _UNKNOWN_ROWS if rows is None else max(rows, 1)
        return Bounds(max(1, qo_indptr.shape[0] - 1), rows, max(1, min(rows, longest or rows)), max(1, key_bound))

    def _plan_mask(self, batch, custom_mask, packed_custom_mask, items, host_lengths):
        """Bits and byte offsets of a mask that the plan brings. In graph mode they go into the caller's buffers."""
        self._item_mask = None
        if items is not None:
            self._item_mask = ItemMask(self.device, *items)
            if host_lengths is None:  # the bits' number is known when run sees the rows
                return
            bits, indptr = self._item_mask.pack(batch, max(1, int(((host_lengths + 7) // 8).sum())))
            self._item_mask = None
        elif packed_custom_mask is None and custom_mask is None:
            if not self._use_cuda_graph:
                self._set(_custom_mask_buf=None, _mask_indptr_buf=None)
            return
        else:
            lengths = batch.qo_lens() * batch.kv_lens()
            if packed_custom_mask is not None:
                bits, indptr = packed_custom_mask.to(self.device), prefix_sum((lengths + 7) // 8)
            else:
                if host_lengths is not None and int(host_lengths.sum()) != custom_mask.numel():
                    raise ValueError(f"custom_mask: expected sum(qo_len * kv_len) = {int(host_lengths.sum())} elements, "
                                     f"found {custom_mask.numel()}")
                bits, indptr = pack_mask(custom_mask.to(self.device), lengths)
        if not self._use_cuda_graph:
            self._custom_mask_buf, self._mask_indptr_buf = bits, indptr.to(torch.int32)
            return
        if not isinstance(self._custom_mask_buf, torch.Tensor) or not isinstance(self._mask_indptr_buf, torch.Tensor):
            raise ValueError("custom_mask_buf and mask_indptr_buf must be initialized with a torch.Tensor in cuda graph mode "
                             "if a custom mask is used in attention computation.")
        fill([self._custom_mask_buf, self._mask_indptr_buf], [bits[:self._custom_mask_buf.numel()], indptr])

    def _mask_for(self, q):
        if self._item_mask is not None:
            batch = self._plan_info
            bits, indptr = self._item_mask.pack(batch, q.shape[0] * batch.bounds.kv_len // 8 + batch.num_requests + 1)
            self._custom_mask_buf, self._mask_indptr_buf, self._item_mask = bits, indptr.to(torch.int32), None

    def _check_rows(self, q):
        last = self._qo_indptr_last
        if last is not None and (q.shape[0] < last if self._use_cuda_graph else q.shape[0] != last):
            raise ValueError(f"q: expected qo_indptr[-1] = {last} rows, found {q.shape[0]}")


def _items(prefix_len_ptr, token_pos_in_items_ptr, token_pos_in_items_len, max_item_len_ptr):
    """The arguments of multi-item scoring, or None."""
    given = [x is not None for x in (prefix_len_ptr, token_pos_in_items_ptr)]
    if not any(given):
        return None
    if not all(given):
        raise ValueError("prefix_len_ptr and token_pos_in_items_ptr: expected both or neither")
    return prefix_len_ptr, token_pos_in_items_ptr, token_pos_in_items_len


class BatchPrefillWithPagedKVCacheWrapper(_PrefillWrapper):
    """plan() once a step, run() once a layer: q [qo_indptr[-1], Hq, D] over the pages of B requests.

    Causality is aligned to the bottom right; a row that sees no key gives zeros and LSE -inf."""

    _aligned_workspaces = True

    def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, qo_indptr_buf=None,
                 paged_kv_indptr_buf=None, paged_kv_indices_buf=None, paged_kv_last_page_len_buf=None, custom_mask_buf=None,
                 mask_indptr_buf=None, backend="auto", jit_args=None, jit_kwargs=None, variant_owns_mask=False):
        super().__init__(float_workspace_buffer, kv_layout, use_cuda_graph, qo_indptr_buf, custom_mask_buf, mask_indptr_buf,
                         backend, jit_args, jit_kwargs, variant_owns_mask)
        self._paged_kv_indptr_buf, self._paged_kv_indices_buf = paged_kv_indptr_buf, paged_kv_indices_buf
        self._paged_kv_last_page_len_buf = paged_kv_last_page_len_buf
        batch_size = self._fixed_batch_size
        self._require_buffers(paged_kv_indptr_buf=(paged_kv_indptr_buf, batch_size + 1),
                              paged_kv_indices_buf=(paged_kv_indices_buf, None),
                              paged_kv_last_page_len_buf=(paged_kv_last_page_len_buf, batch_size))

    @api
    def plan(self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads,
             head_dim_qk, page_size, head_dim_vo=None, custom_mask=None, packed_custom_mask=None, causal=False,
             pos_encoding_mode="NONE", use_fp16_qk_reduction=False, sm_scale=None, window_left=-1, logits_soft_cap=None,
             rope_scale=None, rope_theta=None, q_data_type="float16", kv_data_type=None, o_data_type=None, non_blocking=True,
             prefix_len_ptr=None, token_pos_in_items_ptr=None, token_pos_in_items_len=0, max_item_len_ptr=None, seq_lens=None,
             seq_lens_q=None, block_tables=None, max_token_per_sequence=None, max_sequence_kv=None, fixed_split_size=None,
             disable_split_kv=False, uniform_q_len=None):
        """Schedules a step: rows qo_indptr [B + 1], the page table, and what the layers have in common."""
        batch_size = qo_indptr.shape[0] - 1
        masked = custom_mask is not None or packed_custom_mask is not None or prefix_len_ptr is not None
        asked = None if masked or self._use_cuda_graph else (  # there the caller's mask may come and go
            num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo, page_size, causal, pos_encoding_mode, sm_scale, window_left,
            logits_soft_cap, rope_scale, rope_theta, q_data_type, kv_data_type, o_data_type, token_pos_in_items_ptr, block_tables,
            fixed_split_size, disable_split_kv)
        again = asked is not None and self._asks_again(asked)
        self._check_batch_size(batch_size)
        if not again:
            self._set_dtypes(q_data_type, kv_data_type, o_data_type)
            self._set_options(causal=causal, pos_encoding_mode=pos_encoding_mode, window_left=window_left,
                              logits_soft_cap=logits_soft_cap, sm_scale=sm_scale, rope_scale=rope_scale, rope_theta=rope_theta)
            self._set(_batch_invariant=wants_invariance(fixed_split_size, disable_split_kv), _block_tables=block_tables)
        host_lengths, bound = None, bound_steps(paged_kv_indptr, paged_kv_indices.numel()) * page_size
        if masked and on_host(qo_indptr, paged_kv_indptr, paged_kv_last_page_len):
            lengths = paged_lengths(paged_kv_indptr, paged_kv_last_page_len, page_size)
            host_lengths = lengths * (qo_indptr[1:] - qo_indptr[:-1])
        if self._use_cuda_graph:
            bound = self._paged_kv_indices_buf.numel() * page_size
        bounds = self._row_bounds(qo_indptr, bound, uniform_q_len)
        qo_indptr, indptr, _, last = self._indices(
            _qo_indptr_buf=qo_indptr, _paged_kv_indptr_buf=paged_kv_indptr, _paged_kv_indices_buf=paged_kv_indices,
            _paged_kv_last_page_len_buf=paged_kv_last_page_len)
        batch = self._set_batch(qo_indptr, {"kv_page_indptr": indptr, "last_page_len": last}, bounds, page_size,
                                (num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo or head_dim_qk), again)
        if not again:
            items = _items(prefix_len_ptr, token_pos_in_items_ptr, token_pos_in_items_len, max_item_len_ptr)
            self._plan_mask(batch, custom_mask, packed_custom_mask, items, host_lengths)
        self._prepare(asked, again)

    begin_forward = plan

    def _plan_from_module(self, float_ws, int_ws, pinned_ws, qo_indptr, kv_indptr, kv_lens, rows, batch_size, num_qo_heads,
                          num_kv_heads, page_size, graph, head_dim_qk, head_dim_vo, causal, window_left, *split):
        """Upstream's module as engines call it: the caller has filled the wrapper's buffers."""
        self._causal, self._window_left, self._qo_indptr_last = causal, window_left, None
        longest = bound_steps(qo_indptr, rows)
        key_bound = max(1, bound_lengths(kv_lens, self._paged_kv_indices_buf.numel() * page_size))
        bounds = Bounds(max(1, batch_size), max(1, rows), max(1, min(longest, rows)), key_bound)
        if self._use_cuda_graph:
            bounds = self._row_bounds(self._qo_indptr_buf, self._paged_kv_indices_buf.numel() * page_size, None)
        self._set_batch(self._qo_indptr_buf[:batch_size + 1],
                        {"kv_page_indptr": self._paged_kv_indptr_buf[:batch_size + 1],
                         "last_page_len": self._paged_kv_last_page_len_buf[:batch_size]},
                        bounds, page_size, (num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo))
        self._prepare()
        return self._plan_info

    @api
    def run(self, q, paged_kv_cache, *args, q_scale=None, k_scale=None, v_scale=None, out=None, lse=None, return_lse=False,
            lse_base="log2", lse_layout="NH", enable_pdl=None, window_left=None, sinks=None, kv_cache_sf=None,
            skip_softmax_threshold_scale_factor=None, use_fp16_softmax=None, uses_spcompress=None):
        """-> out [rows, Hq, D_vo], or (out, lse [rows, Hq])."""
        given = q_scale, k_scale, v_scale, window_left, kv_cache_sf, lse_base, lse_layout
        if self._ready is not None and not args and not compiling():
            result = self._again(given, q, paged_kv_cache, None, out, lse, return_lse, sinks)
            if result is not None:
                return result
        k, v = unpack_paged(paged_kv_cache, self._kv_layout)
        self._check_run(q, k, window_left, kv_cache_sf)
        self._check_rows(q)
        self._mask_for(q)
        return self._run(q, k, v, csr(self._paged_kv_indptr_buf, self._paged_kv_indices_buf), args, q_scale=q_scale,
                         k_scale=k_scale, v_scale=v_scale, out=out, lse=lse, return_lse=return_lse, sinks=sinks,
                         lse_base=lse_base, lse_layout=lse_layout, given=given)

    def forward(self, q, paged_kv_cache, causal=False, pos_encoding_mode="NONE", use_fp16_qk_reduction=False, k_scale=None,
                v_scale=None, window_left=-1, logits_soft_cap=None, sm_scale=None, rope_scale=None, rope_theta=None,
                return_lse=False):
        """Older clients' run: its own options replace the planned ones."""
        self._set_options(causal=causal, pos_encoding_mode=pos_encoding_mode, window_left=window_left,
                          logits_soft_cap=logits_soft_cap, sm_scale=sm_scale, rope_scale=rope_scale, rope_theta=rope_theta)
        return self.run(q, paged_kv_cache, k_scale=k_scale, v_scale=v_scale, return_lse=return_lse)

    run_return_lse = functools.partialmethod(run, return_lse=True)
    forward_return_lse = functools.partialmethod(forward, return_lse=True)


class BatchPrefillWithRaggedKVCacheWrapper(_PrefillWrapper):
    """As the paged wrapper over ragged keys: k [kv_indptr[-1], Hkv, D_qk], v [.., D_vo], any strides."""

    def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, qo_indptr_buf=None, kv_indptr_buf=None,
                 custom_mask_buf=None, mask_indptr_buf=None, backend="auto", jit_args=None, jit_kwargs=None,
                 variant_owns_mask=False):
        super().__init__(float_workspace_buffer, kv_layout, use_cuda_graph, qo_indptr_buf, custom_mask_buf, mask_indptr_buf,
                         backend, jit_args, jit_kwargs, variant_owns_mask)
        self._kv_indptr_buf = kv_indptr_buf
        self._ones = None
        self._require_buffers(kv_indptr_buf=(kv_indptr_buf, self._fixed_batch_size + 1))

    @api
    def plan(self, qo_indptr, kv_indptr, num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo=None, custom_mask=None,
             packed_custom_mask=None, causal=False, pos_encoding_mode="NONE", use_fp16_qk_reduction=False, window_left=-1,
             logits_soft_cap=None, sm_scale=None, rope_scale=None, rope_theta=None, q_data_type="float16", kv_data_type=None,
             o_data_type=None, non_blocking=True, prefix_len_ptr=None, token_pos_in_items_ptr=None, token_pos_in_items_len=0,
             max_item_len_ptr=None, fixed_split_size=None, disable_split_kv=False, seq_lens=None, seq_lens_q=None,
             max_token_per_sequence=None, max_sequence_kv=None, v_indptr=None, o_indptr=None, uniform_q_len=None):
        """Schedules a step: rows qo_indptr [B + 1], keys kv_indptr [B + 1], both in tokens."""
        batch_size = qo_indptr.shape[0] - 1
        if len(kv_indptr) != batch_size + 1:
            raise ValueError("The kv_indptr length should be equal to qo_indptr length.")
        self._check_batch_size(batch_size)
        self._set_dtypes(q_data_type, kv_data_type, o_data_type)
        self._set_options(causal=causal, pos_encoding_mode=pos_encoding_mode, window_left=window_left,
                          logits_soft_cap=logits_soft_cap, sm_scale=sm_scale, rope_scale=rope_scale, rope_theta=rope_theta)
        self._batch_invariant = wants_invariance(fixed_split_size, disable_split_kv)
        host_lengths, bound = None, UNKNOWN_KEYS if self._use_cuda_graph else bound_steps(kv_indptr, UNKNOWN_KEYS)
        masked = any(x is not None for x in (custom_mask, packed_custom_mask, prefix_len_ptr))
        if masked and on_host(qo_indptr, kv_indptr):
            host_lengths = (kv_indptr[1:] - kv_indptr[:-1]).long() * (qo_indptr[1:] - qo_indptr[:-1])
        bounds = self._row_bounds(qo_indptr, bound, uniform_q_len)
        qo_indptr, kv_indptr = self._indices(_qo_indptr_buf=qo_indptr, _kv_indptr_buf=kv_indptr)
        batch = self._ragged_batch(qo_indptr, kv_indptr, bounds,
                                   (num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo or head_dim_qk))
        items = _items(prefix_len_ptr, token_pos_in_items_ptr, token_pos_in_items_len, max_item_len_ptr)
        self._plan_mask(batch, custom_mask, packed_custom_mask, items, host_lengths)
        self._prepare()

    begin_forward = plan

    def _ragged_batch(self, qo_indptr, kv_indptr, bounds, heads):
        """Ragged keys are pages of one key each, so that lengths follow from the offsets without another buffer."""
        if self._ones is None or self._ones.numel() != len(qo_indptr) - 1:
            self._ones = torch.ones(len(qo_indptr) - 1, dtype=torch.int32, device=self.device)
        return self._set_batch(qo_indptr, {"kv_page_indptr": kv_indptr, "last_page_len": self._ones}, bounds, 1, heads)

    def _plan_from_module(self, float_ws, int_ws, pinned_ws, qo_indptr, kv_indptr, kv_lens, rows, batch_size, num_qo_heads,
                          num_kv_heads, page_size, graph, head_dim_qk, head_dim_vo, causal, window_left, *split):
        self._causal, self._window_left, self._qo_indptr_last = causal, window_left, None
        longest = bound_steps(qo_indptr, rows)
        key_bound = UNKNOWN_KEYS if self._use_cuda_graph else max(1, bound_lengths(kv_lens, UNKNOWN_KEYS))
        bounds = Bounds(max(1, batch_size), max(1, rows), max(1, min(longest, rows)), key_bound)
        if self._use_cuda_graph:
            bounds = self._row_bounds(self._qo_indptr_buf, key_bound, None)
        self._ragged_batch(self._qo_indptr_buf, self._kv_indptr_buf, bounds,
                           (num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo))
        self._prepare()
        return self._plan_info

    @api
    def run(self, q, k, v, *args, q_scale=None, k_scale=None, v_scale=None, o_scale=None, out=None, lse=None,
            return_lse=False, lse_base="log2", lse_layout="NH", enable_pdl=None, kv_cache_sf=None):
        """-> out [rows, Hq, D_vo], or (out, lse [rows, Hq]). Scales apply to quantised keys only, which are refused."""
        given = kv_cache_sf, lse_base, lse_layout
        if self._ready is not None and not args and not compiling():
            result = self._again(given, q, k, v, out, lse, return_lse, None)
            if result is not None:
                return result
        self._check_run(q, k, None, kv_cache_sf)
        self._check_rows(q)
        self._mask_for(q)
        return self._run(q, k, v, {"indptr": self._kv_indptr_buf}, args, out=out, lse=lse, return_lse=return_lse,
                         lse_base=lse_base, lse_layout=lse_layout, given=given)

    def forward(self, q, k, v, causal=False, pos_encoding_mode="NONE", use_fp16_qk_reduction=False, window_left=-1,
                logits_soft_cap=None, sm_scale=None, rope_scale=None, rope_theta=None, return_lse=False):
        """Older clients' run: its own options replace the planned ones."""
        self._set_options(causal=causal, pos_encoding_mode=pos_encoding_mode, window_left=window_left,
                          logits_soft_cap=logits_soft_cap, sm_scale=sm_scale, rope_scale=rope_scale, rope_theta=rope_theta)
        return self.run(q, k, v, return_lse=return_lse)

    run_return_lse = functools.partialmethod(run, return_lse=True)
    forward_return_lse = functools.partialmethod(forward, return_lse=True)


@api
def single_prefill_with_kv_cache(q, k, v, scale_q=None, scale_k=None, scale_v=None, o_dtype=None, custom_mask=None,
                                 packed_custom_mask=None, causal=False, kv_layout="NHD", pos_encoding_mode="NONE",
                                 use_fp16_qk_reduction=False, sm_scale=None, window_left=-1, logits_soft_cap=None,
                                 rope_scale=None, rope_theta=None, backend="auto", return_lse=False, kv_cache_sf=None,
                                 k_scale=None, v_scale=None):
    """One request: q [qo_len, Hq, D_qk], k [kv_len, Hkv, D_qk], v [.., D_vo] or HND. -> out, or (out, lse in base 2)."""
    check_layout(kv_layout)
    check_pos_encoding_mode(pos_encoding_mode)
    if any(x is not None for x in (scale_q, scale_k, scale_v)):
        refuse("fp8 attention")
    if kv_cache_sf is not None:
        refuse("NVFP4 KV caches")
    k, v = as_nhd(k, kv_layout), as_nhd(v, kv_layout)
    masked = custom_mask is not None or packed_custom_mask is not None
    if causal and not masked and k.shape[0] < q.shape[0]:
        raise ValueError(f"causal: expected kv_len >= qo_len, found {k.shape[0]} and {q.shape[0]}")
    options = Options(causal=causal, window_left=window_left, logits_soft_cap=logits_soft_cap,
                      sm_scale=scaled(sm_scale, q.shape[-1], k_scale), pos_encoding_mode=pos_encoding_mode,
                      rope_scale=rope_scale, rope_theta=rope_theta)
    if packed_custom_mask is not None:
        bits = packed_custom_mask.to(q.device)
        options.mask = bits, torch.arange(2, dtype=torch.int32, device=q.device) * bits.numel()
    elif masked:
        if custom_mask.numel() != q.shape[0] * k.shape[0]:  # FlashInfer takes it flat as well
            raise ValueError(f"custom_mask: expected [qo_len, kv_len] = {(q.shape[0], k.shape[0])}, "
                             f"found {tuple(custom_mask.shape)}")
        options.mask = pack_mask(custom_mask.to(q.device), torch.full((1,), custom_mask.numel(), device=q.device))
    return attend_single(options, q, k, v, out_dtype=None if o_dtype is None else to_dtype(o_dtype), return_lse=return_lse,
                         v_scale=v_scale)


single_prefill_with_kv_cache_return_lse = functools.partial(single_prefill_with_kv_cache, return_lse=True)


def _nvfp4_kv_requires_disabled_split_kv(*args, **kwargs):
    return False


__getattr__ = _absent.lookup("prefill")
