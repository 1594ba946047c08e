"""Bits to bytes. Quantisers are in fp4_quantization and fp8_quantization."""
import torch

from .._api import api
from ..jit import gen_quantization_module


def _weights(bitorder, device):
    if bitorder not in ("big", "little"):
        raise ValueError(f"bitorder: expected 'big' or 'little', found {bitorder!r}")
    bit = torch.arange(8, device=device)
    return torch.bitwise_left_shift(torch.ones_like(bit), 7 - bit if bitorder == "big" else bit)


def _pack(bits, bitorder):
    """bits bool [n, 8] -> uint8 [n]"""
    return (bits.long() * _weights(bitorder, bits.device)).sum(-1).to(torch.uint8)


@api
def packbits(x, bitorder="big"):
    """numpy.packbits of all elements of x -> uint8 [ceil(n / 8)]. Attention masks need bitorder="little"."""
    bits = x.reshape(-1) != 0
    return _pack(torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).view(-1, 8), bitorder)


@api
def segment_packbits(x, indptr, bitorder="big"):
    """Packs the segments x[indptr[i]:indptr[i + 1]], each from a new byte on. -> (uint8 bytes, int32 indptr in bytes)

    Waits for the device: the size of the result is what it holds."""
    start = indptr.to(x.device).long()
    sizes = torch.div(start.diff() + 7, 8, rounding_mode="floor")
    new_indptr = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    byte = torch.arange(int(new_indptr[-1]), device=x.device)
    segment = torch.searchsorted(new_indptr[1:].contiguous(), byte, right=True)
    at = (start[segment] + (byte - new_indptr[segment]) * 8)[:, None] + torch.arange(8, device=x.device)
    bits = (x != 0)[at.clamp(max=max(x.numel() - 1, 0))] & (at < start[segment + 1, None])
    return _pack(bits, bitorder), new_indptr.int()
