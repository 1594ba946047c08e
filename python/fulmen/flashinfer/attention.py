"""Attention over batches that mix prefill and decode, and attention with sinks."""
import torch

from ._api import api
from ._attention import Bounds, bound_lengths, bound_steps, on_host, unpack_paged, upload, _UNKNOWN_ROWS
from ._wrapper import BatchWrapper, csr
from .prefill import BatchPrefillWithPagedKVCacheWrapper
from .jit import gen_batch_attention_module


class BatchAttention(BatchWrapper):
    """q [qo_indptr[-1], Hq, D] over pages; requests of any query length in one batch. Owns its workspaces."""

    def __init__(self, kv_layout="NHD", device="cuda"):
        device = torch.device(device)
        if device.type == "cuda" and not torch.cuda.is_available():
            device = torch.device("cpu")  # the default names a device that this machine hasn't got
        super().__init__(torch.empty(256, dtype=torch.uint8, device=device), kv_layout)
        self.float_workspace_buffer, self.int_workspace_buffer = self._float_workspace_buffer, self._int_workspace_buffer
        self.page_locked_int_workspace_buffer, self.module = self._pin_memory_int_workspace_buffer, None

    @api
    def plan(self, qo_indptr, kv_indptr, kv_indices, kv_len_arr, num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo,
             page_size, causal=False, sm_scale=None, logits_soft_cap=None, q_data_type=torch.bfloat16,
             kv_data_type=torch.bfloat16, use_profiler=False):
        """kv_indptr counts pages, kv_len_arr [B] keys."""
        self._set_dtypes(q_data_type, kv_data_type, None)
        self._set_options(causal=causal, pos_encoding_mode="NONE", window_left=-1, logits_soft_cap=logits_soft_cap,
                          sm_scale=sm_scale, rope_scale=None, rope_theta=None)
        batch_size = len(kv_len_arr)
        rows = longest = _UNKNOWN_ROWS
        if on_host(qo_indptr):
            rows, longest = int(qo_indptr[-1]), bound_steps(qo_indptr, 0)
        bound = bound_lengths(kv_len_arr, kv_indices.numel() * page_size)
        qo_indptr, self._kv_indptr, self._kv_indices, kv_lens = upload(self.device, qo_indptr, kv_indptr, kv_indices, kv_len_arr)
        self._set_batch(qo_indptr[:batch_size + 1], {"kv_len": kv_lens},
                        Bounds(max(1, batch_size), max(1, rows), max(1, min(rows, longest)), max(1, bound)), page_size,
                        (num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo))
        self.module = self._cached_module
        self._prepare()

    @api
    def run(self, q, kv_cache, out=None, lse=None, k_scale=None, v_scale=None, logits_soft_cap=0.0, profiler_buffer=None,
            kv_cache_sf=None):
        """-> (out, lse in base 2)"""
        k, v = unpack_paged(kv_cache, self._kv_layout)
        self._check_run(q, k, None, kv_cache_sf)
        if logits_soft_cap and logits_soft_cap > 0:
            if not self._logits_soft_cap > 0:
                raise ValueError("logits_soft_cap used in kernel run but not provided in plan(). This will cause template "
                                 "deduction error.")
            self._logits_soft_cap = logits_soft_cap
        return self._run(q, k, v, csr(self._kv_indptr, self._kv_indices), (), k_scale=k_scale, v_scale=v_scale, out=out,
                         lse=lse, return_lse=True)


class BatchAttentionWithAttentionSinkWrapper(BatchPrefillWithPagedKVCacheWrapper):
    """Paged prefill with run(q, cache, sink, sm_scale): sink f32 [Hq], a natural-log logit that each row's denominator
    holds once more."""

    def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, qo_indptr_buf=None,
                 paged_kv_indptr_buf=None, paged_kv_indices_buf=None, paged_kv_last_page_len_buf=None, custom_mask_buf=None,
                 mask_indptr_buf=None, backend="auto", pos_encoding_mode="NONE", use_fp16_qk_reduction=False,
                 q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16, head_dim_qk=128, head_dim_vo=128, window_left=-1):
        super().__init__(float_workspace_buffer, kv_layout, use_cuda_graph, qo_indptr_buf, paged_kv_indptr_buf,
                         paged_kv_indices_buf, paged_kv_last_page_len_buf, custom_mask_buf, mask_indptr_buf, backend)
        self._variant_has_sinks = True
