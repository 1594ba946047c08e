"""Rotary position embedding. q, k [nnz, heads, D]; pairs (d, d + rotary_dim / 2), interleaved (2d, 2d + 1)."""
import torch

from .. import ops
from ._api import api, refuse


def _positions(q, indptr, offsets):
    """offsets[b] + i - indptr[b] for row i of segment b."""
    row = torch.arange(q.shape[0], device=q.device)
    bounds = indptr.long()
    segment = torch.searchsorted(bounds[1:].contiguous(), row, right=True).clamp(max=max(offsets.numel() - 1, 0))
    return row + (offsets.long() - bounds[:-1])[segment]


def _rotate(q, k, positions, into, interleave, rotary_dim, **params):
    params.update(rotary_dim=rotary_dim or q.shape[-1], interleaved=interleave)
    q_out, k_out = into
    ops.rope(q, k, positions=positions, q_out=q_out, k_out=k_out, **params)


def _linear(rope_scale, rope_theta):
    return {"scaling": "linear", "factor": rope_scale, "theta": rope_theta}


def _llama31(rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len):
    return {"scaling": "llama31", "factor": rope_scale, "theta": rope_theta, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor, "original_context": old_context_len}


def _beside(q, k):
    return torch.empty_like(q), torch.empty_like(k)


@api
def apply_rope(q, k, indptr, offsets, rotary_dim=None, interleave=False, rope_scale=1, rope_theta=1e4):
    """Rotates by theta^(-2d / rotary_dim) / rope_scale; row i of segment b stands at offsets[b] + i - indptr[b]."""
    out = _beside(q, k)
    _rotate(q, k, _positions(q, indptr, offsets), out, interleave, rotary_dim, **_linear(rope_scale, rope_theta))
    return out


@api
def apply_rope_inplace(q, k, indptr, offsets, rotary_dim=None, interleave=False, rope_scale=1, rope_theta=1e4):
    """apply_rope, in place."""
    at = _positions(q, indptr, offsets)
    _rotate(q, k, at, (None, None), interleave, rotary_dim, **_linear(rope_scale, rope_theta))


@api
def apply_rope_pos_ids(q, k, pos_ids, rotary_dim=None, interleave=False, rope_scale=1, rope_theta=1e4):
    """apply_rope with a position per row, int32 or int64 [nnz]."""
    out = _beside(q, k)
    _rotate(q, k, pos_ids, out, interleave, rotary_dim, **_linear(rope_scale, rope_theta))
    return out


@api
def apply_rope_pos_ids_inplace(q, k, pos_ids, rotary_dim=None, interleave=False, rope_scale=1, rope_theta=1e4):
    """apply_rope_pos_ids, in place."""
    _rotate(q, k, pos_ids, (None, None), interleave, rotary_dim, **_linear(rope_scale, rope_theta))


@api
def apply_llama31_rope(q, k, indptr, offsets, rotary_dim=None, interleave=False, rope_scale=8, rope_theta=5e5,
                       low_freq_factor=1, high_freq_factor=4, old_context_len=8192):
    """apply_rope with Llama 3.1's frequencies: low ones divided by rope_scale, high ones kept, blended between."""
    out = _beside(q, k)
    _rotate(q, k, _positions(q, indptr, offsets), out, interleave, rotary_dim,
            **_llama31(rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len))
    return out


@api
def apply_llama31_rope_inplace(q, k, indptr, offsets, rotary_dim=None, interleave=False, rope_scale=8, rope_theta=5e5,
                               low_freq_factor=1, high_freq_factor=4, old_context_len=8192):
    """apply_llama31_rope, in place."""
    _rotate(q, k, _positions(q, indptr, offsets), (None, None), interleave, rotary_dim,
            **_llama31(rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len))


@api
def apply_llama31_rope_pos_ids(q, k, pos_ids, rotary_dim=None, interleave=False, rope_scale=8, rope_theta=5e5,
                               low_freq_factor=1, high_freq_factor=4, old_context_len=8192):
    """apply_llama31_rope with a position per row."""
    out = _beside(q, k)
    _rotate(q, k, pos_ids, out, interleave, rotary_dim,
            **_llama31(rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len))
    return out


@api
def apply_llama31_rope_pos_ids_inplace(q, k, pos_ids, rotary_dim=None, interleave=False, rope_scale=8, rope_theta=5e5,
                                       low_freq_factor=1, high_freq_factor=4, old_context_len=8192):
    """apply_llama31_rope_pos_ids, in place."""
    _rotate(q, k, pos_ids, (None, None), interleave, rotary_dim,
            **_llama31(rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len))


def _from_cache(positions, query, key, head_size, cos_sin_cache, is_neox, into):
    if cos_sin_cache.dtype != torch.float32:
        raise ValueError(f"cos_sin_cache should be float32, found {cos_sin_cache.dtype}")
    views = [None if x is None else x.view(x.shape[0], -1, head_size) for x in (query, key, *into)]
    ops.rope(views[0], views[1], positions=positions, cos_sin_cache=cos_sin_cache, q_out=views[2], k_out=views[3],
             rotary_dim=cos_sin_cache.shape[-1], interleaved=not is_neox)


@api
def apply_rope_with_cos_sin_cache(positions, query, key, head_size, cos_sin_cache, is_neox=True):
    """Rotates flat query, key [nnz, heads * head_size] by rows of cos_sin_cache, float32 [positions, rotary_dim]."""
    out = torch.empty_like(query), torch.empty_like(key)
    _from_cache(positions, query, key, head_size, cos_sin_cache, is_neox, out)
    return out


@api
def apply_rope_with_cos_sin_cache_inplace(positions, query, key, head_size, cos_sin_cache, is_neox=True):
    """apply_rope_with_cos_sin_cache, in place."""
    _from_cache(positions, query, key, head_size, cos_sin_cache, is_neox, (None, None))


def rope_quantize_fp8(q_rope, k_rope, q_nope, k_nope, cos_sin_cache, pos_ids, is_neox=True, quantize_dtype=None,
                      quant_scale_q=1.0, quant_scale_kv=1.0, q_rope_out=None, k_rope_out=None, q_nope_out=None, k_nope_out=None,
                      enable_pdl=False, backend="cuda"):
    """Not offered: fp8 output."""
    refuse("fp8 output (rope_quantize_fp8)")


def mla_rope_quantize_fp8(q_rope, k_rope, q_nope, k_nope, cos_sin_cache, pos_ids, is_neox=True, quantize_dtype=None,
                          quant_scale_q=1.0, quant_scale_kv=1.0, q_rope_out=None, k_rope_out=None, q_nope_out=None,
                          k_nope_out=None, enable_pdl=False):
    """Not offered: fp8 output."""
    refuse("fp8 output (mla_rope_quantize_fp8)")


def rope_quantize_fp8_append_paged_kv_cache(q_rope, k_rope, q_nope, k_nope, v, cos_sin_cache, pos_ids, paged_kv_cache, kv_indices,
                                            kv_indptr, batch_indices, positions, is_neox=True, quantize_dtype=None,
                                            quant_scale_q=1.0, quant_scale_kv=1.0, page_size=16, kv_layout="NHD", q_rope_out=None,
                                            q_nope_out=None, enable_pdl=False):
    """Not offered: fp8 KV caches."""
    refuse("fp8 KV caches (rope_quantize_fp8_append_paged_kv_cache)")
