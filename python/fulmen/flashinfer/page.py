"""Appending to paged KV caches and the arrays around it."""
import torch

from .. import ops
from . import _absent
from ._api import api, refuse
from .jit import gen_page_module

__getattr__ = _absent.lookup("page")


def split_cache(paged_kv_cache, kv_layout, name="paged_kv_cache"):
    """(k, v) as [pages, page size, heads, dim] views of one tensor with a 2 at dim 1, or of a tuple (k, v)."""
    if isinstance(paged_kv_cache, tuple):
        k, v = paged_kv_cache
    elif isinstance(paged_kv_cache, torch.Tensor):
        k, v = paged_kv_cache.unbind(1)
    else:
        raise KeyError(f"{name}: expected a tensor or a tuple (k, v), found {type(paged_kv_cache).__name__}")
    if kv_layout not in ("NHD", "HND"):
        raise KeyError(f"kv_layout: expected NHD or HND, found {kv_layout}")
    if k.dim() == 3:  # page size 1 with the page dimension left out
        k, v = (x.unsqueeze(1 if kv_layout == "NHD" else 2) for x in (k, v))
    return (k, v) if kv_layout == "NHD" else (k.transpose(1, 2), v.transpose(1, 2))


def _slots(batch_indices, positions, kv_indices, kv_indptr, page_size):
    """page * page_size + offset of each row; -1: the row belongs to no request, or lies beyond its pages."""
    at, last_entry = positions.long(), kv_indices.numel() - 1
    if last_entry < 0:
        return torch.full_like(at, -1)
    request = batch_indices.long().clamp(0, kv_indptr.numel() - 2)
    page = torch.div(at, page_size, rounding_mode="floor")
    entry = page + kv_indptr[request]
    legal = (request == batch_indices) & (at >= 0) & (entry < kv_indptr[1:][request])
    slot = torch.add(at % page_size, kv_indices[entry.clamp(0, last_entry)], alpha=page_size)
    return torch.where(legal, slot, -1)


def _check_16_bit(x, name):
    if x.element_size() == 1:
        refuse(f"fp8 and NVFP4 KV caches ({name} of dtype {x.dtype})")


@api
def append_paged_kv_cache(append_key, append_value, batch_indices, positions, paged_kv_cache, kv_indices, kv_indptr,
                          kv_last_page_len, kv_layout="NHD"):
    """Writes row i to slot positions[i] of request batch_indices[i], whose page table already counts it.

    append_key, append_value [nnz, Hkv, D], strided. Rows of request -1, and slots outside the cache, are skipped."""
    k, v = split_cache(paged_kv_cache, kv_layout)
    _check_16_bit(k, "paged_kv_cache")
    slots = _slots(batch_indices, positions, kv_indices, kv_indptr, k.shape[1])
    ops.append_kv(append_key, append_value, k, v, slot_mapping=slots)


@api
def append_paged_mla_kv_cache(append_ckv, append_kpe, batch_indices, positions, ckv_cache, kpe_cache, kv_indices,
                              kv_indptr, kv_last_page_len):
    """The same for MLA: append_ckv [nnz, 512] into ckv_cache [pages, P, 512], append_kpe [nnz, 64] into kpe_cache."""
    _check_16_bit(ckv_cache, "ckv_cache")
    slots = _slots(batch_indices, positions, kv_indices, kv_indptr, ckv_cache.shape[1])
    ops.append_kv(append_ckv.unsqueeze(1), append_kpe.unsqueeze(1), ckv_cache.unsqueeze(2), kpe_cache.unsqueeze(2),
                  slot_mapping=slots)


@api
def get_batch_indices_positions(append_indptr, seq_lens, nnz, batch_indices=None, positions=None):
    """Request and position of each appended row: the rows of request b end at position seq_lens[b] - 1.

    append_indptr [B + 1], seq_lens [B]. Rows past append_indptr[-1] get request -1, position 0. -> int32 [nnz] each"""
    device = append_indptr.device
    row = torch.arange(nnz, device=device)
    indptr, lens = append_indptr.long(), seq_lens.long()
    batch = torch.searchsorted(indptr[1:].contiguous(), row, right=True)
    inside = row < indptr[-1]
    request = batch.clamp(max=max(lens.numel() - 1, 0))
    at = torch.where(inside, lens[request] - indptr[request + 1] + row, 0).int()
    batch = torch.where(inside, batch, -1).int()
    if batch_indices is not None:
        batch = batch_indices.copy_(batch)
    if positions is not None:
        at = positions.copy_(at)
    return batch, at


@api
def get_seq_lens(kv_indptr, kv_last_page_len, page_size):
    """(pages - 1) * page_size + kv_last_page_len, int32 [B]; a request without pages: kv_last_page_len."""
    return torch.clamp(kv_indptr[1:] - kv_indptr[:-1] - 1, min=0) * page_size + kv_last_page_len
