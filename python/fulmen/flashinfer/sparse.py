"""Attention under block-sparse masks: a block row is a request, its blocks are pages."""
import functools

import torch

from ._api import api, refuse
from ._attention import Bounds, bits_where, bound_lengths, bound_steps, on_host, prefix_sum, upload, _UNKNOWN_ROWS
from ._wrapper import UNKNOWN_KEYS, BatchWrapper, csr


class _SparseWrapper(BatchWrapper):
    def __init__(self, float_workspace_buffer, backend="auto"):
        super().__init__(float_workspace_buffer, "NHD", backend=backend)


class BlockSparseAttentionWrapper(_SparseWrapper):
    """BSR: an M x N mask in blocks of R x C. q [M, Hq, D], k, v [N, Hkv, D]; the output is float16 unless o_data_type says
    otherwise. Causality is aligned to the bottom right of the keys that a block row gathers."""

    @api
    def plan(self, indptr, indices, M, N, R, C, num_qo_heads, num_kv_heads, head_dim, mask=None, packed_mask=None, causal=False,
             pos_encoding_mode="NONE", use_fp16_qk_reduction=False, logits_soft_cap=None, sm_scale=None, rope_scale=None,
             rope_theta=None, q_data_type="float16", kv_data_type=None, o_data_type="float16", non_blocking=True,
             block_mask=None, kv_block_lens=None, q2k_indices=None, q2k_num=None, kv_splits=None, use_clc=None, q_scale=None,
             k_scale=None, v_scale=None):
        """indptr [ceil(M / R) + 1], indices: blocks of each block row; mask bool [blocks, R, C] within them, or packed:
        each block row's [rows, gathered keys] bits on a new byte."""
        if any(x is not None for x in (block_mask, kv_block_lens, q2k_indices, q2k_num, kv_splits, use_clc)):
            refuse("block masks of other back ends")
        if N % C:
            raise ValueError(f"N: expected a multiple of C = {C}, found {N}")
        block_rows = -(-M // R)
        if len(indptr) != block_rows + 1:
            raise ValueError(f"indptr: expected ceil(M / R) + 1 = {block_rows + 1} entries, found {len(indptr)}")
        if on_host(indices) and indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < N // C:
            raise ValueError(f"indices: expected blocks 0 to {N // C - 1}, found {int(indices.min())} to {int(indices.max())}")
        self._set_dtypes(q_data_type, kv_data_type, o_data_type)
        self._set_options(causal=causal, pos_encoding_mode=pos_encoding_mode, window_left=-1, logits_soft_cap=logits_soft_cap,
                          sm_scale=sm_scale, rope_scale=rope_scale, rope_theta=rope_theta)
        self._scales, self._shape = (q_scale, k_scale, v_scale), (M, N, R, C)
        bound = bound_steps(indptr, indices.numel()) * C
        self._indptr, self._block_indices = upload(self.device, indptr, indices)
        qo_indptr = (torch.arange(block_rows + 1, dtype=torch.int32, device=self.device) * R).clamp_(max=M)
        last = torch.full((block_rows,), C, dtype=torch.int32, device=self.device)
        batch = self._set_batch(qo_indptr, {"kv_page_indptr": self._indptr, "last_page_len": last},
                                Bounds(max(1, block_rows), max(1, M), max(1, min(R, M)), max(1, bound)), C,
                                (num_qo_heads, num_kv_heads, head_dim, head_dim))
        self._custom_mask_buf = self._mask_indptr_buf = None
        if packed_mask is not None:
            self._custom_mask_buf = packed_mask.to(self.device)
            self._mask_indptr_buf = prefix_sum((batch.qo_lens() * batch.kv_lens() + 7) // 8)
        elif mask is not None:
            self._custom_mask_buf, self._mask_indptr_buf = self._pack(batch, mask.to(self.device).reshape(-1), R, C)
        self._prepare()

    begin_forward = plan

    def _pack(self, batch, mask, R, C):
        """From block by block to row by row."""
        first, kv_lens = self._indptr.long(), batch.kv_lens()

        def visible(request, element):
            keys = kv_lens[request].clamp(min=1)
            row, key = element // keys, element % keys
            place = ((first[request] + key // C) * R + row) * C + key % C
            return mask[place.clamp(max=max(mask.numel() - 1, 0))]

        if mask.numel() == 0:
            return torch.zeros(1, dtype=torch.uint8, device=self.device), torch.zeros_like(first)
        return bits_where(batch.qo_lens() * kv_lens, mask.numel() // 8 + batch.num_requests + 1, visible)

    @api
    def run(self, q, k, v, scale_q=None, scale_k=None, scale_v=None, out=None, lse=None, return_lse=False, enable_pdl=None):
        """-> out [M, Hq, D], or (out, lse)."""
        if any(x is not None for x in (scale_q, scale_k, scale_v)):
            refuse("fp8 attention")
        self._check_run(q, k)
        M, N, _, C = self._shape
        if q.shape[0] != M or k.shape[0] != N:
            raise ValueError(f"q, k: expected the planned M = {M} and N = {N} rows, found {q.shape[0]} and {k.shape[0]}")
        q_scale, k_scale, v_scale = self._scales
        k, v = (x.unflatten(0, (N // C, C)) for x in (k, v))
        return self._run(q, k, v, csr(self._indptr, self._block_indices), (), q_scale=q_scale, k_scale=k_scale,
                         v_scale=v_scale, out=out, lse=lse, return_lse=return_lse)

    forward = run

    run_return_lse = forward_return_lse = functools.partialmethod(run, return_lse=True)


class VariableBlockSparseAttentionWrapper(_SparseWrapper):
    """Blocks of any sizes, another pattern for each kv head. q [Hq, qo_len, D], k, v [Hkv, kv_len, D]."""

    @api
    def plan(self, block_mask_map, block_row_sz, block_col_sz, num_qo_heads, num_kv_heads, head_dim, causal=False,
             pos_encoding_mode="NONE", use_fp16_qk_reduction=False, logits_soft_cap=None, sm_scale=None, rope_scale=None,
             rope_theta=None, non_blocking=True, q_data_type="float16", kv_data_type=None):
        """block_mask_map bool [Hkv, rows, columns] of blocks; block_row_sz [Hkv, rows], block_col_sz [Hkv, columns]."""
        self._set_dtypes(q_data_type, kv_data_type, None)
        self._set_options(causal=causal, pos_encoding_mode=pos_encoding_mode, window_left=-1, logits_soft_cap=logits_soft_cap,
                          sm_scale=sm_scale, rope_scale=rope_scale, rope_theta=rope_theta)
        rows = longest = _UNKNOWN_ROWS
        if on_host(block_row_sz):
            rows, longest = int(block_row_sz.sum()), bound_lengths(block_row_sz, 0)
        bound = int(block_col_sz.sum(1).max()) if on_host(block_col_sz) else UNKNOWN_KEYS
        sizes = upload(self.device, block_row_sz.reshape(-1), block_col_sz.reshape(-1))
        self._columns = sizes[1].reshape(block_col_sz.shape).long()
        self._blocks = block_mask_map.to(device=self.device, dtype=torch.bool)
        qo_indptr = prefix_sum(sizes[0]).to(torch.int32)
        kv_lens = (self._blocks * self._columns[:, None, :]).sum(-1).reshape(-1).to(torch.int32)
        self._table = None
        self._set_batch(qo_indptr, {"kv_len": kv_lens},
                        Bounds(max(1, kv_lens.numel()), max(1, rows), max(1, min(rows, longest)), max(1, bound)), 1,
                        (num_qo_heads // num_kv_heads, 1, head_dim, head_dim))
        self._prepare()

    begin_forward = plan

    def _key_table(self, kv_len):
        """[Hkv * rows, kv_len]: the keys that each block row sees, in order, then zeros."""
        heads, rows, _ = self._blocks.shape
        keys = torch.arange(kv_len, device=self.device)
        column = torch.searchsorted(self._columns.cumsum(1), keys.expand(heads, -1).contiguous(), right=True)
        column.clamp_(max=self._columns.shape[1] - 1)
        visible = self._blocks.gather(2, column[:, None, :].expand(-1, rows, -1))
        place = torch.where(visible, visible.cumsum(-1) - 1, kv_len)
        table = torch.zeros(heads, rows, kv_len + 1, dtype=torch.int32, device=self.device)
        keys = (keys + torch.arange(heads, device=self.device)[:, None] * kv_len).int()
        table.scatter_(2, place, keys[:, None].expand(-1, rows, -1))
        return table.reshape(heads * rows, kv_len + 1)

    @api
    def run(self, q, k, v, out=None, lse=None, return_lse=False, enable_pdl=None):
        """-> out [Hq, qo_len, D], or (out, lse [Hq, qo_len])."""
        self._check_run(q, k)
        num_kv_heads, kv_len, _ = k.shape
        num_qo_heads, qo_len, head_dim = q.shape
        group = num_qo_heads // num_kv_heads
        if self._table is None or self._table.shape[1] != kv_len + 1:
            self._table = self._key_table(kv_len)
        rows = q.reshape(num_kv_heads, group, qo_len, head_dim).transpose(1, 2).reshape(num_kv_heads * qo_len, group, head_dim)
        k, v = (x.reshape(num_kv_heads * kv_len, 1, 1, x.shape[-1]) for x in (k, v))
        o, s = self._run(rows, k, v, self._table, (), return_lse=True)
        o = o.view(num_kv_heads, qo_len, group, -1).transpose(1, 2).reshape(num_qo_heads, qo_len, -1)
        s = s.view(num_kv_heads, qo_len, group).transpose(1, 2).reshape(num_qo_heads, qo_len)
        out = o if out is None else out.copy_(o)
        lse = s if lse is None else lse.copy_(s)
        return (out, lse) if return_lse else out

    forward = run

    run_return_lse = forward_return_lse = functools.partialmethod(run, return_lse=True)
