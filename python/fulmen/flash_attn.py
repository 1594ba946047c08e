"""flash-attn's functions over Fulmen, for inference: names, arguments and layouts of flash_attn 2.8.

    from fulmen.flash_attn import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache

On torch tensors of a CUDA device or the CPU. A causal mask is aligned to the last key. A row that sees no key gives
zeros and LSE -inf. LSE is a natural logarithm. Dropout, gradients and windows to the right are refused.
"""
import torch

from . import _binding, ops
from ._arrays import compiling
from .flashinfer import _attention as core
from .flashinfer._batch import attend_into

__all__ = ["flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"]


def _refuse(what):
    raise _binding.Unsupported("unsupported", f"fulmen.flash_attn does not offer {what}")


def _check(tensors, dropout_p, window_size, causal):
    """-> (causal, window_left)"""
    if dropout_p:
        _refuse("dropout")
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        _refuse("gradients: call it under torch.no_grad()")
    left, right = window_size
    if right not in (-1, 0) and not causal:
        _refuse(f"windows to the right (window_size={tuple(window_size)})")
    return bool(causal or right == 0), int(left)


def attend(q, k, v, table, qo_indptr, kv_len, *, max_qo_len, max_kv_len, causal, window_left=-1, softmax_scale=None,
           softcap=0.0, alibi_slopes=None, sinks=None, mask=None, want_lse=False):
    """Rows q [rows, Hq, D] of requests qo_indptr [B + 1] over kv_len [B] keys that `table` finds in k, v.

    mask: (bits, byte offsets), on top of causality. -> (out [rows, Hq, Dv], lse f32 [rows, Hq] or None)"""
    q = q if q.stride(-1) == 1 else q.contiguous()
    core.check_dtypes(q.dtype, k.dtype, q.dtype)
    out = torch.empty(*q.shape[:2], v.shape[-1], dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device) if want_lse else None
    if q.shape[0] == 0 or q.shape[1] == 0:
        return out, lse
    run = attend_into
    if compiling():
        from .flashinfer._traced import flash_run as run
    run(q, k, v, out, lse, table, qo_indptr, kv_len, max_qo_len, max_kv_len, causal, window_left, softmax_scale, softcap, alibi_slopes,
        sinks, mask)
    return out, lse


def _slopes(alibi_slopes, causal):
    if alibi_slopes is None:
        return None
    if alibi_slopes.dim() != 1 or not causal:
        _refuse("ALiBi slopes per batch row, or without a causal mask")
    return alibi_slopes.float().contiguous()


def _every(batch, length, device):
    """0, length, 2 length, ... batch * length"""
    return torch.arange(batch + 1, dtype=torch.int32, device=device) * length


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                    alibi_slopes=None, deterministic=False, return_attn_probs=False):
    """q [B, Sq, Hq, D], k, v [B, Sk, Hkv, D] -> out [B, Sq, Hq, Dv]; return_attn_probs: (out, lse [B, Hq, Sq], None)."""
    causal, window_left = _check((q, k, v), dropout_p, window_size, causal)
    (batch, q_len, heads, _), kv_len, device = q.shape, k.shape[1], q.device
    # K and V are caches of one page per batch row, whatever their strides.
    table = torch.arange(batch, dtype=torch.int32, device=device)[:, None]
    out, lse = attend(q.reshape(batch * q_len, heads, -1), k, v, table, _every(batch, q_len, device),
                      torch.full((batch,), kv_len, dtype=torch.int32, device=device), max_qo_len=q_len, max_kv_len=kv_len,
                      causal=causal, window_left=window_left, softmax_scale=softmax_scale, softcap=softcap,
                      alibi_slopes=_slopes(alibi_slopes, causal), want_lse=return_attn_probs)
    out = out.view(batch, q_len, heads, -1)
    return (out, lse.view(batch, q_len, heads).transpose(1, 2).contiguous(), None) if return_attn_probs else out


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
                           softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
                           deterministic=False, return_attn_probs=False, block_table=None):
    """q [rows, Hq, D], k, v [keys, Hkv, D] of requests cu_seqlens [B + 1]; with block_table [B, pages] k, v are paged
    [pages, page size, Hkv, D]. -> out [rows, Hq, Dv]; return_attn_probs: (out, lse [Hq, rows], None)."""
    causal, window_left = _check((q, k, v), dropout_p, window_size, causal)
    lens = cu_seqlens_k[1:] - cu_seqlens_k[:-1]
    table = {"indptr": cu_seqlens_k} if block_table is None else block_table
    out, lse = attend(q, k, v, table, cu_seqlens_q, lens, max_qo_len=int(max_seqlen_q), max_kv_len=int(max_seqlen_k),
                      causal=causal, window_left=window_left, softmax_scale=softmax_scale, softcap=softcap,
                      alibi_slopes=_slopes(alibi_slopes, causal), want_lse=return_attn_probs)
    return (out, lse.t().contiguous(), None) if return_attn_probs else out


def _rotated(x, cos, sin, positions, interleaved):
    cache = torch.cat([cos, sin], -1).float().contiguous()
    rows = x.reshape(-1, *x.shape[-2:])
    out, _ = ops.rope(rows, positions=positions.reshape(-1), cos_sin_cache=cache, q_out=torch.empty_like(rows),
                      rotary_dim=cache.shape[-1], interleaved=interleaved)
    return out.view(x.shape)


def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
                            cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None, causal=False,
                            window_size=(-1, -1), softcap=0.0, rotary_interleaved=True, alibi_slopes=None, num_splits=0,
                            return_softmax_lse=False):
    """q [B, Sq, Hq, D] over a cache [B, S, Hkv, D], or with block_table [B, pages] a paged one [pages, page size, Hkv, D].

    cache_seqlens int or int32 [B]: keys in the cache. k, v [B, new, Hkv, D] are written behind them first. rotary_cos,
    rotary_sin [positions, rotary_dim / 2] rotate q and k. -> out [B, Sq, Hq, Dv], or (out, lse [B, Hq, Sq])."""
    causal, window_left = _check((q, k, v), 0.0, window_size, causal)
    if cache_leftpad is not None:
        _refuse("cache_leftpad")
    (batch, q_len, heads, _), device = q.shape, q.device
    if cache_seqlens is None:
        cache_seqlens = k_cache.shape[1]
    if not isinstance(cache_seqlens, torch.Tensor):
        cache_seqlens = torch.full((batch,), cache_seqlens, dtype=torch.int32, device=device)
    if block_table is not None:
        table, max_kv_len = block_table, block_table.shape[1] * k_cache.shape[1]
    else:
        rows = torch.arange(batch, dtype=torch.int32, device=device) if cache_batch_idx is None else cache_batch_idx
        table, max_kv_len = rows[:, None], k_cache.shape[1]
    if rotary_cos is not None:
        local = causal or window_left >= 0
        steps = torch.arange(q_len, device=device) if local else torch.zeros(q_len, dtype=torch.int64, device=device)
        q = _rotated(q, rotary_cos, rotary_sin, cache_seqlens[:, None] + steps, rotary_interleaved)
    lens = cache_seqlens
    if k is not None:
        new = k.shape[1]
        if rotary_cos is not None:
            k = _rotated(k, rotary_cos, rotary_sin, cache_seqlens[:, None] + torch.arange(new, device=device), rotary_interleaved)
        lens = cache_seqlens + new
        ops.append_kv(k.reshape(batch * new, *k.shape[2:]), v.reshape(batch * new, *v.shape[2:]), k_cache, v_cache,
                      qo_indptr=_every(batch, new, device), kv_len=lens, table=table)
    out, lse = attend(q.reshape(batch * q_len, heads, -1), k_cache, v_cache, table, _every(batch, q_len, device), lens,
                      max_qo_len=q_len, max_kv_len=max_kv_len, causal=causal, window_left=window_left,
                      softmax_scale=softmax_scale, softcap=softcap, alibi_slopes=_slopes(alibi_slopes, causal),
                      want_lse=return_softmax_lse)
    out = out.view(batch, q_len, heads, -1)
    return (out, lse.view(batch, q_len, heads).transpose(1, 2).contiguous()) if return_softmax_lse else out
