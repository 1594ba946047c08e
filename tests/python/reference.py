"""Plain float64 references; nothing here is shared with the library."""
import numpy as np


def attention(q, k, v, *, causal=True, window_left=-1, sm_scale=None, soft_cap=0.0):
    """One request: q [n, hq, d], k [m, hk, d], v [m, hk, dv] -> (o, lse)."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    n, hq, d = q.shape
    m, hk, _ = k.shape
    scale = d**-0.5 if sm_scale is None else sm_scale
    o, lse = np.zeros((n, hq, v.shape[2])), np.full((n, hq), -np.inf)
    for i in range(n):
        position = m - n + i
        for h in range(hq):
            kv_head = h // (hq // hk)
            logits = scale * (k[:, kv_head] @ q[i, h])
            if soft_cap:
                logits = soft_cap * np.tanh(logits / soft_cap)
            keys = np.arange(m)
            visible = np.ones(m, bool)
            if causal:
                visible &= keys <= position
            if window_left >= 0:
                visible &= keys >= position - window_left
            if not visible.any():
                continue
            logits = logits[visible]
            top = logits.max()
            p = np.exp(logits - top)
            o[i, h] = p @ v[visible, kv_head] / p.sum()
            lse[i, h] = top + np.log(p.sum())
    return o, lse


def rms_norm(x, weight, eps, offset=0.0):
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * (weight.astype(np.float64) + offset)


def softmax(x):
    x = x.astype(np.float64)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def to_bf16(x):
    """float32 -> the bits of bf16, rounded to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)
