"""Prefill and decode in one call (POD attention, Kamath et al., 2024): here one after the other on the stream."""
from ._api import api
from .decode import BatchDecodeWithPagedKVCacheWrapper
from .prefill import BatchPrefillWithPagedKVCacheWrapper, single_prefill_with_kv_cache


class PODWithPagedKVCacheWrapper:
    """One prompt of contiguous keys beside a decode batch over pages, which alone is planned."""

    def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, paged_kv_indptr_buffer=None,
                 paged_kv_indices_buffer=None, paged_kv_last_page_len_buffer=None, jit_args=None):
        self._decode = BatchDecodeWithPagedKVCacheWrapper(
            float_workspace_buffer, kv_layout, use_cuda_graph, True, paged_kv_indptr_buffer, paged_kv_indices_buffer,
            paged_kv_last_page_len_buffer, jit_args=jit_args)

    @property
    def is_cuda_graph_enabled(self):
        return self._decode.is_cuda_graph_enabled

    def reset_workspace_buffer(self, float_workspace_buffer, int_workspace_buffer):
        self._decode.reset_workspace_buffer(float_workspace_buffer, int_workspace_buffer)

    @api
    def plan(self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, pos_encoding_mode="NONE",
             window_left=-1, q_data_type="float16", kv_data_type=None, data_type=None, sm_scale=None, rope_scale=None,
             rope_theta=None, non_blocking=True):
        self._decode.plan(indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size,
                          pos_encoding_mode=pos_encoding_mode, window_left=window_left, q_data_type=q_data_type,
                          kv_data_type=kv_data_type, data_type=data_type, sm_scale=sm_scale, rope_scale=rope_scale,
                          rope_theta=rope_theta)

    begin_forward = plan

    @api
    def run(self, q_p, k_p, v_p, q_d, paged_kv_cache_d, custom_mask_p=None, packed_custom_mask_p=None, causal_p=False,
            kv_layout_p="NHD", pos_encoding_mode_p="NONE", sm_scale_p=None, window_left_p=-1, rope_scale_p=None,
            rope_theta_p=None, return_lse_p=False, custom_mask_d=None, packed_custom_mask_d=None, causal_d=False,
            kv_layout_d="NHD", pos_encoding_mode_d="NONE", sm_scale_d=None, window_left_d=-1, rope_scale_d=None,
            rope_theta_d=None, q_scale=None, k_scale=None, v_scale=None, return_lse_d=False, use_fp16_qk_reduction=False,
            enable_pdl=None, *args):
        """-> (out_p, out_d). The options of the decode batch are those of its plan; scales are the decode batch's."""
        out_p = single_prefill_with_kv_cache(
            q_p, k_p, v_p, custom_mask=custom_mask_p, packed_custom_mask=packed_custom_mask_p, causal=causal_p,
            kv_layout=kv_layout_p, pos_encoding_mode=pos_encoding_mode_p, sm_scale=sm_scale_p, window_left=window_left_p,
            rope_scale=rope_scale_p, rope_theta=rope_theta_p)
        return out_p, self._decode.run(q_d, paged_kv_cache_d, q_scale=q_scale, k_scale=k_scale, v_scale=v_scale)

    def end_forward(self):
        """Kept for older clients; does nothing."""


class BatchPODWithPagedKVCacheWrapper:
    """A prefill batch beside a decode batch, both over pages."""

    def __init__(self, float_workspace_buffer, kv_layout="NHD"):
        self._parts = [BatchPrefillWithPagedKVCacheWrapper(float_workspace_buffer, kv_layout) for _ in range(2)]

    @property
    def is_cuda_graph_enabled(self):
        return False

    @api
    def plan(self, qo_indptr_p, kv_indptr_p, kv_indices_p, last_page_len_p, qo_indptr_d, kv_indptr_d, kv_indices_d,
             last_page_len_d, num_qo_heads, num_kv_heads, head_dim, page_size, pos_encoding_mode="NONE", window_left=-1,
             q_data_type="float16", kv_data_type=None, data_type=None, sm_scale=None, rope_scale=None, rope_theta=None,
             non_blocking=True):
        tables = ((qo_indptr_p, kv_indptr_p, kv_indices_p, last_page_len_p),
                  (qo_indptr_d, kv_indptr_d, kv_indices_d, last_page_len_d))
        if data_type is not None:
            q_data_type, kv_data_type = q_data_type or data_type, kv_data_type or data_type
        for wrapper, table in zip(self._parts, tables):
            wrapper.plan(*table, num_qo_heads, num_kv_heads, head_dim, page_size, pos_encoding_mode=pos_encoding_mode,
                         window_left=window_left, q_data_type=q_data_type, kv_data_type=kv_data_type, sm_scale=sm_scale,
                         rope_scale=rope_scale, rope_theta=rope_theta)

    begin_forward = plan

    @api
    def run(self, q_p, paged_kv_cache_p, q_d, paged_kv_cache_d, custom_mask_p=None, packed_custom_mask_p=None, causal_p=False,
            q_scale=None, k_scale=None, v_scale=None, return_lse=False, use_fp16_qk_reduction=False, enable_pdl=None):
        """-> (out_p, out_d), with return_lse ((out_p, lse_p), (out_d, lse_d))"""
        prefill, decode = self._parts
        prefill._causal = causal_p
        prefill._plan_mask(prefill._plan_info, custom_mask_p, packed_custom_mask_p, None, None)
        scales = dict(q_scale=q_scale, k_scale=k_scale, v_scale=v_scale, return_lse=return_lse)
        return prefill.run(q_p, paged_kv_cache_p, **scales), decode.run(q_d, paged_kv_cache_d, **scales)

    def end_forward(self):
        """Kept for older clients; does nothing."""
