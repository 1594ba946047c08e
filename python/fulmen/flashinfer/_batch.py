"""Attention of a batch that comes with its lengths and tables on the device, for fulmen.flash_attn and fulmen.transformers."""
import threading

from .._arrays import context_of, stream_of
from ._attention import _SHORT, Bounds, Kind, StreamMemory, _handle, _present

_local = threading.local()  # plan and scratch memory belong to one thread's work on one stream


def _memory(device, stream):
    found = _local.__dict__.setdefault("memory", {})
    key = device, stream
    if key not in found:
        found[key] = StreamMemory(device)
    return found[key]


def attend_into(q, k, v, out, lse, table, qo_indptr, kv_len, max_qo_len, max_kv_len, causal, window_left, softmax_scale, softcap,
                alibi_slopes, sinks, mask):
    """Rows of requests over the keys that `table` finds: flash_attn.attend, into out and lse, which its caller made."""
    features = {"soft_cap": softcap > 0, "alibi": alibi_slopes is not None, "sinks": sinks is not None,
                "custom_mask": mask is not None}
    dtype = _SHORT[q.dtype]
    kind = Kind(dtype, dtype, q.shape[-1], v.shape[-1], q.shape[1], k.shape[-2], causal, window_left,
                tuple(name for name, on in features.items() if on), False)
    bounds = Bounds(qo_indptr.numel() - 1, q.shape[0], max_qo_len, max_kv_len).rounded()
    handle, stream = _handle(context_of(q), kind, bounds), stream_of(q)
    plan, scratch = _memory(q.device, stream).of(handle)
    page_size = k.shape[1] if k.dim() == 4 else 1
    handle.plan([{"qo_indptr": qo_indptr, "kv_len": kv_len}], page_size, plan, stream)
    bits, offsets = mask or (None, None)
    handle.run(q, _present(k), _present(v), out, [table], plan, scratch, lse=lse, page_size=page_size,
               sm_scale=softmax_scale or 0.0, logits_soft_cap=softcap, alibi_slopes=alibi_slopes, sinks=sinks, mask=bits,
               mask_indptr=offsets, stream=stream)
