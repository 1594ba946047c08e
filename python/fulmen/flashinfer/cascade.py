"""Attention over a hierarchy of shared prefixes."""
import torch

from .._arrays import compiling, give_name
from ._api import api
from ._attention import Batch, Bounds, attend, check_layout, on_host, paged_lengths, unpack_paged
from ._merge import merge_state, merge_state_in_place, merge_states
from .decode import BatchDecodeWithPagedKVCacheWrapper
from ._wrapper import csr
from .prefill import BatchPrefillWithPagedKVCacheWrapper, single_prefill_with_kv_cache

_MAX_LEVELS = 4  # of one fulmen call


def _one_chain(causal, qo_indptrs, indptr, last_page_len, page_size):
    """Are the levels, one after another, each request's keys? Then its rows see the prefixes whole and, if causal, their
    own keys up to themselves. That needs segments made of whole requests, and a key of its own for every row."""
    if not on_host(indptr, last_page_len, *qo_indptrs):
        return not causal
    ends = set(qo_indptrs[-1].tolist())
    if not all(set(q.tolist()) <= ends and int(q[-1]) == int(qo_indptrs[-1][-1]) for q in qo_indptrs[:-1]):
        return False
    rows = qo_indptrs[-1][1:] - qo_indptrs[-1][:-1]
    return not causal or bool((paged_lengths(indptr, last_page_len, page_size) >= rows).all())


class MultiLevelCascadeAttentionWrapper:
    """Levels run from the one that all requests share to their own; a segment of a level serves the rows that its
    qo_indptr spans. One cache; causality holds on the last level, which holds the rows' own keys.

    One call serves all levels and reads a shared prefix once. Where its meaning is another (positions or windows that
    count from each level's start, more than four levels, a row without keys of its own under causality, or one that only
    the device knows of), each level runs by itself and LSE joins them."""

    def __init__(self, num_levels, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, qo_indptr_buf_arr=None,
                 paged_kv_indptr_buf_arr=None, paged_kv_indices_buf_arr=None, paged_kv_last_page_len_buf_arr=None):
        check_layout(kv_layout)
        self._num_levels, self._kv_layout, self._use_cuda_graph = num_levels, kv_layout, use_cuda_graph
        buffers = [b if use_cuda_graph else [None] * num_levels for b in (
            qo_indptr_buf_arr, paged_kv_indptr_buf_arr, paged_kv_indices_buf_arr, paged_kv_last_page_len_buf_arr)]
        self._batch_prefill_wrappers = [
            BatchPrefillWithPagedKVCacheWrapper(float_workspace_buffer, kv_layout, use_cuda_graph, *of_level)
            for of_level in zip(*buffers)]
        self._id = give_name(self)
        self._chain = None  # the Batch of all levels, where one call serves them

    @property
    def is_cuda_graph_enabled(self):
        return self._use_cuda_graph

    def reset_workspace_buffer(self, float_workspace_buffer, int_workspace_buffers):
        for wrapper, int_workspace_buffer in zip(self._batch_prefill_wrappers, int_workspace_buffers):
            wrapper.reset_workspace_buffer(float_workspace_buffer, int_workspace_buffer)

    @api
    def plan(self, qo_indptr_arr, paged_kv_indptr_arr, paged_kv_indices_arr, paged_kv_last_page_len, num_qo_heads, num_kv_heads,
             head_dim, page_size, causal=False, pos_encoding_mode="NONE", use_fp16_qk_reduction=False, sm_scale=None,
             window_left=-1, logits_soft_cap=None, rope_scale=None, rope_theta=None, q_data_type="float16",
             kv_data_type=None):
        """Each list has an entry for each level, as BatchPrefillWithPagedKVCacheWrapper.plan takes it."""
        chained = (1 < self._num_levels <= _MAX_LEVELS and pos_encoding_mode == "NONE" and window_left < 0 and _one_chain(
            causal, qo_indptr_arr, paged_kv_indptr_arr[-1], paged_kv_last_page_len[-1], page_size))
        levels = zip(self._batch_prefill_wrappers, qo_indptr_arr, paged_kv_indptr_arr, paged_kv_indices_arr, paged_kv_last_page_len)
        for i, (wrapper, qo_indptr, indptr, indices, last_page_len) in enumerate(levels):
            wrapper._plans_ahead = not chained
            wrapper.plan(qo_indptr, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size,
                         causal=causal and i == self._num_levels - 1, pos_encoding_mode=pos_encoding_mode, sm_scale=sm_scale,
                         window_left=window_left, logits_soft_cap=logits_soft_cap, rope_scale=rope_scale,
                         rope_theta=rope_theta, q_data_type=q_data_type, kv_data_type=kv_data_type)

        self._chain = self._join_levels(page_size) if chained else None

    begin_forward = plan

    def _join_levels(self, page_size):
        *shared, own = (w._plan_info for w in self._batch_prefill_wrappers)
        bounds = Bounds(max(b.bounds.requests for b in (*shared, own)), own.bounds.rows, own.bounds.qo_len,
                        sum(b.bounds.kv_len for b in (*shared, own)), self._num_levels)
        chain = Batch(own.memory, own.qo_indptr, own.lengths, bounds, page_size, like=self._chain,
                      prefixes=[{"qo_indptr": b.qo_indptr, **b.lengths} for b in shared])
        wrapper = self._batch_prefill_wrappers[-1]
        hq, hk, d_qk, d_vo = wrapper._heads
        chain.handle(wrapper._options(d_qk).kind(wrapper._cached_q_data_type, wrapper._cached_o_data_type, d_qk, d_vo, hq, hk))
        return chain

    @api
    def run(self, q, paged_kv_cache):
        """-> out [rows, Hq, D]"""
        *shared, own = self._batch_prefill_wrappers
        if self._chain is not None:
            k, v = unpack_paged(paged_kv_cache, self._kv_layout)
            own._check_run(q, k)
            out = torch.empty((*q.shape[:2], v.shape[-1]), dtype=own._cached_o_data_type, device=q.device)
            if compiling():
                from . import _traced
                _traced.cascade_run(self, q, k, v, out)
            else:
                self._run_chain(q, k, v, out)
            return out
        out, lse = own.run(q, paged_kv_cache, return_lse=True)
        for wrapper in shared:
            merge_state_in_place(out, lse, *wrapper.run(q, paged_kv_cache, return_lse=True))
        return out

    def _run_chain(self, q, k, v, out):
        tables = [csr(w._paged_kv_indptr_buf, w._paged_kv_indices_buf) for w in self._batch_prefill_wrappers]
        attend(self._chain, self._batch_prefill_wrappers[-1]._options(q.shape[-1]), q, k, v, tables, out=out)

    forward = run

    def end_forward(self):
        """Kept for older clients; does nothing."""


class _SharedPrefix:
    """Two levels of older clients: a contiguous prefix that all requests share, then pages of their own."""

    def __init__(self, float_workspace_buffer, kv_layout="NHD"):
        self._kv_layout = kv_layout
        self._wrapper = self._unique(float_workspace_buffer, kv_layout)

    def reset_workspace_buffer(self, float_workspace_buffer, int_workspace_buffer):
        self._wrapper.reset_workspace_buffer(float_workspace_buffer, int_workspace_buffer)

    def _shared(self, q, k_shared, v_shared, **options):
        return single_prefill_with_kv_cache(q, k_shared, v_shared, causal=False, kv_layout=self._kv_layout, return_lse=True,
                                            **options)

    def end_forward(self):
        """Kept for older clients; does nothing."""


class BatchDecodeWithSharedPrefixPagedKVCacheWrapper(_SharedPrefix):
    """q [B, Hq, D]; k_shared, v_shared [shared_len, Hkv, D] or HND."""

    _unique = BatchDecodeWithPagedKVCacheWrapper

    @api
    def begin_forward(self, unique_kv_indptr, unique_kv_indices, unique_kv_last_page_len, num_qo_heads, num_kv_heads, head_dim,
                      page_size, data_type="float16"):
        self._wrapper.plan(unique_kv_indptr, unique_kv_indices, unique_kv_last_page_len, num_qo_heads, num_kv_heads, head_dim,
                           page_size, q_data_type=data_type, kv_data_type=data_type)

    plan = begin_forward

    @api
    def forward(self, q, k_shared, v_shared, unique_kv_cache):
        out, lse = self._wrapper.run(q, unique_kv_cache, return_lse=True)
        merge_state_in_place(out, lse, *self._shared(q, k_shared, v_shared))
        return out

    run = forward


class BatchPrefillWithSharedPrefixPagedKVCacheWrapper(_SharedPrefix):
    """q [qo_indptr[-1], Hq, D]; k_shared, v_shared [shared_len, Hkv, D] or HND."""

    _unique = BatchPrefillWithPagedKVCacheWrapper

    @api
    def begin_forward(self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads,
                      head_dim, page_size):
        self._wrapper.plan(qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads,
                           head_dim, page_size)

    plan = begin_forward

    @api
    def forward(self, q, k_shared, v_shared, unique_kv_cache, causal=False, use_fp16_qk_reduction=False, sm_scale=None,
                rope_scale=None, rope_theta=None):
        wrapper = self._wrapper
        # The dtype shows only now.
        wrapper._cached_q_data_type = wrapper._cached_kv_data_type = wrapper._cached_o_data_type = q.dtype
        out, lse = wrapper.forward_return_lse(q, unique_kv_cache, causal=causal, sm_scale=sm_scale, rope_scale=rope_scale,
                                              rope_theta=rope_theta)
        merge_state_in_place(out, lse, *self._shared(q, k_shared, v_shared, sm_scale=sm_scale, rope_scale=rope_scale,
                                                     rope_theta=rope_theta))
        return out

    run = forward
