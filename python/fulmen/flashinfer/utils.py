"""Helpers that clients of FlashInfer call."""
import enum
import functools
import math

import torch

from ._api import refuse


class MaskMode(enum.Enum):
    NON_CAUSAL = 0
    CAUSAL = 1
    CUSTOM = 2
    MULTIITEMSCORING = 3


class PosEncodingMode(enum.Enum):
    NONE = 0
    ROPE_LLAMA = 1
    ALIBI = 2


class TensorLayout(enum.Enum):
    NHD = 0
    HND = 1


class GPUArchitectureError(Exception):
    """Raised by FlashInfer where a GPU is too old for a function; never raised here."""


class FP4Tensor:
    """An fp4 tensor with its scales; not offered."""

    def __init__(self, *args, **kwargs):
        refuse("fp4 tensors (FP4Tensor)")


_cache_buf = {}


def _get_cache_buf(name, bytes, device, zero_init=False):
    """A uint8 buffer of at least `bytes` kept under (name, device)."""
    key = name, torch.device(device)
    buffer = _cache_buf.get(key)
    if buffer is None or buffer.numel() < bytes:
        make = torch.zeros if zero_init else torch.empty
        buffer = _cache_buf[key] = make(bytes, dtype=torch.uint8, device=device)
    return buffer


def get_alibi_slopes(n_heads):
    """float32 [n_heads]: 2^(-8h/n), h = 1 .. n, n the power of two up to n_heads, then 2^(-4m/n), m = 1, 3, 5 ..."""
    n = 2 ** math.floor(math.log2(n_heads))
    first = [2.0 ** (-8.0 * h / n) for h in range(1, n + 1)]
    rest = [2.0 ** (-4.0 * m / n) for m in range(1, 2 * (n_heads - n) + 1, 2)]
    return torch.tensor(first + rest, dtype=torch.float32)


def canonicalize_torch_dtype(dtype):
    """A torch.dtype from itself or its name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype):
        return getattr(torch, dtype)
    raise TypeError(f"dtype: expected a torch.dtype or its name, found {dtype!r}")


def next_positive_power_of_2(x):
    return 1 if x < 1 else 1 << (int(x) - 1).bit_length()


def ceil_div(x, y):
    return -(-x // y)


def round_up(x, y):
    return ceil_div(x, y) * y


def get_device_sm_count(device):
    """Multiprocessors of a CUDA device."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def get_trtllm_gen_multi_ctas_kv_counter_bytes(*args, **kwargs):
    """Bytes of counters that the caller would have to zero: an address's worth, which is never read."""
    return 16


def determine_attention_backend(device, pos_encoding_mode=0, use_fp16_qk_reductions=False, use_custom_mask=False,
                                dtype_q=None, dtype_kv=None, *args, **kwargs):
    """All of FlashInfer's back ends are the one implementation, which answers to this name."""
    return "fa2"


def determine_gemm_backend(device):
    return "sm80"


def is_fa3_backend_supported(*args, **kwargs):
    return False


def is_fa3_prefill_head_dim_supported(*args, **kwargs):
    return False


@functools.lru_cache(None)
def _capability(kind, index):
    return (0, 0) if kind != "cuda" else tuple(torch.cuda.get_device_capability(index))


def get_compute_capability(device):
    """(major, minor) of a CUDA device, (0, 0) of another."""
    device = torch.device(device)
    return _capability(device.type, device.index)


def is_sm90a_supported(device):
    return get_compute_capability(device)[0] == 9


def is_sm100a_supported(device):
    return get_compute_capability(device)[0] == 10


def is_sm110a_supported(device):
    return get_compute_capability(device)[0] == 11


def is_sm12x_supported(device):
    return get_compute_capability(device)[0] == 12


def device_support_pdl(device):
    """Whether the device launches dependent kernels early; enable_pdl is a hint that changes no result."""
    return get_compute_capability(device)[0] >= 9


def has_flashinfer_jit_cache():
    """True: nothing has to be built ahead."""
    return True
