"""Attention without a plan of the caller's: single requests, and the entries that take 2-D block tables.

Their memory belongs to the stream that they are called on. Lengths stay on the device; the bounds given are limits."""
import torch

from ._api import api, refuse
from ._attention import (Batch, Bounds, Options, StreamMemory, as_nhd, attend, bits_where, check_layout, on_host, stream_of,
                         unpack_paged)

_memories = {}


def stream_memory(device):
    key = device, stream_of(device)
    memory = _memories.get(key)
    return _memories.setdefault(key, StreamMemory(device)) if memory is None else memory


def single_batch(device, qo_len, kv_len):
    """One request with ragged keys. -> (batch, table)"""
    ends = torch.arange(2, dtype=torch.int32, device=device)
    batch = Batch(stream_memory(device), ends * qo_len, {"kv_len": ends[1:] * kv_len}, Bounds(1, qo_len, qo_len, kv_len))
    return batch, {"indptr": ends * kv_len}


def scale_by(scale, default=1.0):
    """(host factor, device factor or None) of a scale that is a number or a one-element tensor."""
    if scale is None:
        return default, None
    if isinstance(scale, torch.Tensor):
        return (float(scale), None) if not scale.is_cuda else (1.0, scale.reshape(-1)[:1])
    return float(scale), None


def _draft_mask(mask, qo_indptr, qo_lens, kv_lens, max_q_len, max_kv_len):
    """A tree mask over the draft tokens, u16 [B, max_q_len, words] little-endian; the keys before them are visible."""
    words = mask.view(torch.int16)
    if words.dim() == 2:  # ragged: the rows of all requests
        rows = words
    else:
        rows = words.reshape(-1, words.shape[-1])
        qo_indptr = torch.arange(len(qo_lens), device=mask.device) * words.shape[1]

    def visible(request, element):
        keys = kv_lens[request].clamp(min=1)
        row, key = element // keys, element % keys
        draft = key - (kv_lens - qo_lens)[request]
        word = rows[(qo_indptr[request] + row).clamp(max=rows.shape[0] - 1), (draft >> 4).clamp(0, rows.shape[1] - 1)]
        return (draft < 0) | ((word.int() >> (draft & 15).int()) & 1).bool()

    lengths = qo_lens * kv_lens
    size = len(qo_lens) * ((max_q_len * max_kv_len + 7) // 8)
    return bits_where(lengths, size, visible)


def paged_call(query, k, v, block_tables, kv_lens, max_kv_len, *, scale, out_scale, causal, window_left=-1, sinks=None,
               qo_indptr=None, max_q_len=None, q_len=1, mask=None, v_tables=None, out=None, out_dtype=None, lse=None,
               return_lse=False):
    """One call over a 2-D block table: query [rows, Hq, D], k, v [pages, P, Hkv, D], kv_lens [B] of the device."""
    device, num_requests = query.device, block_tables.shape[0]
    if qo_indptr is None:
        qo_indptr = torch.arange(num_requests + 1, dtype=torch.int32, device=device) * q_len
        max_q_len = q_len
    kv_lens = kv_lens.reshape(-1).to(device=device, dtype=torch.int32)
    limit = max(int(max_kv_len), int(kv_lens.max())) if on_host(kv_lens) and num_requests else int(max_kv_len)
    limit = min(limit, block_tables.shape[1] * k.shape[1])
    bounds = Bounds(max(1, num_requests), max(1, query.shape[0]), max(1, int(max_q_len)), max(1, limit))
    batch = Batch(stream_memory(device), qo_indptr, {"kv_len": kv_lens}, bounds)
    factor, tensor = scale_by(scale)
    if tensor is not None:
        query = query * tensor.to(query.dtype)
    options = Options(causal=causal, window_left=window_left, sm_scale=factor, sinks=None if sinks is None else sinks.reshape(-1))
    if mask is not None:
        options.mask = _draft_mask(mask, qo_indptr.long(), batch.qo_lens(), batch.kv_lens(), int(max_q_len), limit)
    factor, tensor = scale_by(out_scale)
    return attend(batch, options, query, k, v, block_tables, v_table=v_tables, out=out, out_dtype=out_dtype, lse=lse,
                  return_lse=return_lse, v_scale=factor if tensor is None else tensor)


def _refuse_quantised(query, kv_cache_sf, o_sf_scale):
    if kv_cache_sf is not None or o_sf_scale is not None:
        refuse("NVFP4 attention")
    if "float8" in str(query.dtype):
        refuse("fp8 attention")


def _sinks(sinks):
    return sinks[0] if isinstance(sinks, (list, tuple)) else sinks


def _tables(block_tables, shared):
    """(K's table, V's) of [B, pages], or of [B, 2, pages] where they differ."""
    return (block_tables, None) if shared else (block_tables[:, 0], block_tables[:, 1])


@api
def trtllm_batch_decode_with_kv_cache(
        query, kv_cache, workspace_buffer, block_tables, seq_lens, max_seq_len, bmm1_scale=1.0, bmm2_scale=1.0,
        window_left=-1, out=None, out_dtype=None, o_sf_scale=None, o_sf_vec_size=None, sinks=None, kv_layout="HND",
        enable_pdl=None, backend="auto", q_len_per_req=1, o_scale=1.0, mask=None, max_q_len=None, cum_seq_lens_q=None,
        skip_softmax_threshold_scale_factor=None, kv_cache_sf=None, uses_shared_paged_kv_idx=True, lse=None,
        return_lse=False, bmm1_scale_log2=None, multi_ctas_kv_counter_buffer=None, enable_block_sparse_attention=False,
        cp_world=1, cp_rank=0, causal_seqlens_kv_global=None, bf16q_fp8kv_transform_mode=None, request_order=None,
        request_order_plan=None):
    """Decode by block tables [B, max_pages] and lengths [B] that include the new tokens; logit = bmm1_scale q.k, output
    times bmm2_scale. query [B * q_len_per_req, Hq, D], or ragged by cum_seq_lens_q with max_q_len."""
    check_layout(kv_layout)
    _refuse_quantised(query, kv_cache_sf, o_sf_scale)
    if cp_world != 1 or enable_block_sparse_attention:
        refuse("context parallelism and block sparsity of trtllm_batch_decode_with_kv_cache")
    k, v = unpack_paged(kv_cache, kv_layout)
    table, v_table = _tables(block_tables, uses_shared_paged_kv_idx)
    return paged_call(query, k, v, table, seq_lens, max_seq_len, scale=bmm1_scale, out_scale=bmm2_scale, causal=mask is None,
                      window_left=window_left, sinks=_sinks(sinks), qo_indptr=cum_seq_lens_q, max_q_len=max_q_len,
                      q_len=q_len_per_req or 1, mask=mask, v_tables=v_table, out=out, out_dtype=out_dtype, lse=lse,
                      return_lse=return_lse)


@api
def xqa_batch_decode_with_kv_cache(
        query, kv_cache, workspace_buffer, block_tables, seq_lens, max_seq_len, bmm1_scale=1.0, bmm2_scale=1.0,
        window_left=-1, out=None, sinks=None, kv_layout="NHD", enable_pdl=None, q_len_per_req=1, o_scale=1.0, mask=None,
        kv_cache_sf=None, q_cu_seq_lens=None):
    """As trtllm_batch_decode_with_kv_cache; mask u16 [B, q_len_per_req, words] is a tree over the draft tokens."""
    check_layout(kv_layout)
    _refuse_quantised(query, kv_cache_sf, None)
    k, v = unpack_paged(kv_cache, kv_layout)
    return paged_call(query, k, v, block_tables, seq_lens, max_seq_len, scale=bmm1_scale, out_scale=bmm2_scale,
                      causal=mask is None, window_left=window_left, sinks=_sinks(sinks), qo_indptr=q_cu_seq_lens,
                      max_q_len=q_len_per_req, q_len=q_len_per_req or 1, mask=mask, out=out)


@api
def trtllm_batch_context_with_kv_cache(
        query, kv_cache, workspace_buffer, block_tables, seq_lens, max_q_len, max_kv_len, bmm1_scale, bmm2_scale, batch_size,
        cum_seq_lens_q, cum_seq_lens_kv, window_left=-1, out=None, out_dtype=None, o_sf_scale=None, o_sf_vec_size=None,
        kv_layout="HND", enable_pdl=None, sinks=None, kv_cache_sf=None, skip_softmax_threshold_scale_factor=None,
        uses_shared_paged_kv_idx=True, causal=True, lse=None, return_lse=False, multi_ctas_kv_counter_buffer=None,
        use_fp16_softmax=None, uses_spcompress=None, backend="trtllm-gen"):
    """Prefill by block tables; rows of request b are cum_seq_lens_q[b] .. of query."""
    check_layout(kv_layout)
    _refuse_quantised(query, kv_cache_sf, o_sf_scale)
    k, v = unpack_paged(kv_cache, kv_layout)
    table, v_table = _tables(block_tables, uses_shared_paged_kv_idx)
    return paged_call(query, k, v, table, seq_lens, max_kv_len, scale=bmm1_scale, out_scale=bmm2_scale, causal=causal,
                      window_left=window_left, sinks=_sinks(sinks), qo_indptr=cum_seq_lens_q, max_q_len=max_q_len,
                      v_tables=v_table, out=out, out_dtype=out_dtype, lse=lse, return_lse=return_lse)


@api
def xqa(q, k_cache, v_cache, page_table, seq_lens, output, workspace_buffer, semaphores, num_kv_heads, page_size, sinks=None,
        q_scale=1.0, kv_scale=1.0, sliding_win_size=0, kv_layout="NHD", sm_count=None, enable_pdl=None, rcp_out_scale=1.0,
        q_seq_len=1, mask=None, *, q_cu_seq_lens=None, k_sf_cache=None, v_sf_cache=None):
    """q [B, 1, (q_seq_len,) Hq, D] or ragged [rows, Hq, D]; writes `output`. logit = q_scale q.k / sqrt(D)."""
    check_layout(kv_layout)
    _refuse_quantised(k_cache, k_sf_cache, None)
    if q_seq_len > 1 and mask is None:
        raise ValueError(f"mask: expected one for q_seq_len={q_seq_len}, found None")
    rows = q.reshape(-1, q.shape[-2], q.shape[-1])
    factor, tensor = scale_by(q_scale)
    if tensor is not None:
        rows = rows * tensor.to(rows.dtype)
    lens = seq_lens.view(torch.int32) if seq_lens.dtype not in (torch.int32, torch.int64) else seq_lens
    to = output.view(rows.shape) if output.is_contiguous() else None
    done = paged_call(rows, as_nhd(k_cache, kv_layout), as_nhd(v_cache, kv_layout), page_table, lens,
                      page_table.shape[1] * page_size, scale=factor * q.shape[-1]**-0.5, out_scale=rcp_out_scale,
                      causal=mask is None, window_left=sliding_win_size - 1 if sliding_win_size > 0 else -1, sinks=sinks,
                      qo_indptr=q_cu_seq_lens, max_q_len=q_seq_len, q_len=q_seq_len, mask=mask, out=to,
                      out_dtype=output.dtype)
    if to is None:
        output.copy_(done.view(output.shape))
