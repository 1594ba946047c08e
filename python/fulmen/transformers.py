"""Fulmen as transformers' attention.

    import fulmen.transformers                                        # registers the names below
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="fulmen")

Masks come through the mask interface, so padding, windows, chunks and packed sequences are what the model asks for.
Continuous batching: `fulmen.transformers.page(model)` with transformers 5, "paged|fulmen" before.
"""
import torch
from transformers import AttentionInterface

from . import _binding
from .flash_attn import _every, attend, flash_attn_varlen_func, flash_attn_with_kvcache

try:
    from transformers import AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
except ImportError as error:
    raise ImportError("fulmen.transformers: expected transformers 4.53 or newer, which have the mask interface") from error

__all__ = ["attention", "mask", "page"]


def mask(*args, **kwargs):
    """None where causality alone says it, else bool [B, 1, Sq, Sk]: True is visible."""
    return sdpa_mask(*args, **kwargs)


def _bits(visible, batch):
    """bool [B | 1, 1, Sq, Sk] -> (u8 bits, byte offsets [B + 1])"""
    if visible.shape[1] != 1:
        raise _binding.Unsupported("unsupported", "attention_mask: masks that differ between heads are not offered")
    flat = visible.reshape(visible.shape[0], -1).expand(batch, -1)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8)).view(batch, -1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=flat.device)
    bits = (flat.to(torch.uint8) * weights).sum(-1, dtype=torch.uint8)
    return bits.reshape(-1), _every(batch, bits.shape[1], flat.device)


def _longest(kwargs, of):
    """The longest request's rows or keys, under either of the names that transformers has had for it."""
    return kwargs.get(f"max_seqlen_{of}", kwargs.get(f"max_length_{of}"))


def _is_paged(kwargs):
    found = kwargs.get("cu_seq_lens_q"), kwargs.get("cu_seq_lens_k"), _longest(kwargs, "q"), _longest(kwargs, "k")
    return all(x is not None for x in found)


def _paged(module, query, key, value, scaling, softcap, window, kwargs):
    """Continuous batching: requests one after another in one batch row, over the pool of its cache."""
    cache = kwargs.get("cache")
    if cache is not None and window is None:
        window = getattr(module, "sliding_window", None)
    options = {"softmax_scale": scaling, "causal": True, "window_size": (window - 1 if window else -1, -1), "softcap": softcap}
    ends, longest = kwargs["cu_seq_lens_k"], _longest(kwargs, "k")
    if isinstance(ends, dict):  # by kind of layer
        kind = "sliding_attention" if window else "full_attention"
        ends, longest = ends[kind], longest[kind]
    q = query.transpose(1, 2).reshape(-1, query.shape[1], query.shape[3])
    if cache is not None:  # takes the new keys, gives those of all requests
        k, v = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, read_index=kwargs["read_index"],
                            write_index=kwargs["write_index"])
        return flash_attn_varlen_func(q, k, v, kwargs["cu_seq_lens_q"], ends, _longest(kwargs, "q"), longest, **options)[None], None
    k, v = (x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3]) for x in (key, value))
    if kwargs.get("block_table") is not None and kwargs.get("k_cache") is not None:
        lens = ends[1:q.shape[0] + 1] - ends[:q.shape[0]] - 1
        out = flash_attn_with_kvcache(q[:, None], kwargs["k_cache"], kwargs["v_cache"], k[:, None], v[:, None],
                                      cache_seqlens=lens, block_table=kwargs["block_table"], **options)
        return out.reshape(1, -1, *out.shape[-2:]), None
    out = flash_attn_varlen_func(q, k, v, kwargs["cu_seq_lens_q"], ends, _longest(kwargs, "q"), longest, **options)
    return out[None], None


def attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, softcap=None,
              sliding_window=None, s_aux=None, **kwargs):
    """query [B, Hq, Sq, D], key, value [B, Hkv, Sk, D] -> (out [B, Sq, Hq, D], None).

    attention_mask bool [B, 1, Sq, Sk] (or additive: 0 is visible), or None: causal if the module is and Sq > 1."""
    if dropout:
        raise _binding.Unsupported("unsupported", "dropout: fulmen is for inference; call model.eval()")
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        raise _binding.Unsupported("unsupported", "gradients: fulmen is for inference; call the model under torch.no_grad()")
    softcap = softcap or 0.0
    if (attention_mask is None or kwargs.get("cache") is not None) and _is_paged(kwargs):
        return _paged(module, query, key, value, scaling, softcap, sliding_window, kwargs)
    (batch, heads, q_len, _), kv_len, device = query.shape, key.shape[2], query.device
    causal, bits = False, None
    if attention_mask is None:
        causal = q_len > 1 and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    else:
        visible = attention_mask[..., :kv_len]
        bits = _bits(visible if visible.dtype == torch.bool else visible == 0, batch)
    table = torch.arange(batch, dtype=torch.int32, device=device)[:, None]
    out, _ = attend(query.transpose(1, 2).reshape(batch * q_len, heads, -1), key.transpose(1, 2), value.transpose(1, 2), table,
                    _every(batch, q_len, device), torch.full((batch,), kv_len, dtype=torch.int32, device=device),
                    max_qo_len=q_len, max_kv_len=kv_len, causal=causal, softmax_scale=scaling, softcap=softcap,
                    sinks=None if s_aux is None else s_aux.float().contiguous(), mask=bits)
    return out.view(batch, q_len, heads, -1), None


_PAGED = "paged|flash_fulmen"  # transformers 5 builds no mask for a name with "flash", and keeps one with "paged|" as it is


def page(model):
    """Makes model.generate_batch (transformers 5) run on Fulmen. -> model"""
    model.config._attn_implementation = _PAGED  # its setter would look for a package of this name
    return model


for _name in ("fulmen", "paged|fulmen"):
    AttentionInterface.register(_name, attention)
    AttentionMaskInterface.register(_name, mask)
AttentionInterface.register(_PAGED, attention)
