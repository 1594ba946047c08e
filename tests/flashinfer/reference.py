"""Plain float64 references in torch; nothing here is shared with the library. LSE is in base 2."""
import math

import torch

LOG2E = math.log2(math.e)


def alibi_slopes(heads):
    n = 2 ** math.floor(math.log2(heads))
    powers = [-8 * h / n for h in range(1, n + 1)] + [-4 * m / n for m in range(1, 2 * (heads - n) + 1, 2)]
    return torch.tensor([2.0**p for p in powers], dtype=torch.float64)


def rotate_llama(x, positions, scale, theta):
    """x [n, heads, D] by half-split pairs."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half) / scale
    angle = (positions.double()[:, None] * frequency)[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def visible(rows, kv_len, q_len, causal=False, window_left=-1):
    """bool [len(rows), kv_len] for query rows (local indices) whose last one sees the last key."""
    at = rows[:, None] + (kv_len - q_len)
    key = torch.arange(kv_len, device=rows.device)[None, :]
    see = torch.ones(len(rows), kv_len, dtype=torch.bool, device=rows.device)
    if causal:
        see &= key <= at
    if window_left >= 0:
        see &= key >= at - window_left
    return see


def attention(q, k, v, see, *, sm_scale, rows, q_len, soft_cap=0.0, pos_encoding_mode="NONE", slopes=None, rope_scale=1.0,
              rope_theta=1e4, sinks=None):
    """q [n, Hq, D], k [m, Hkv, D], v [m, Hkv, Dv], see bool [n, m] -> (o [n, Hq, Dv], lse [n, Hq]).

    rows: the local index of each row of q among the request's q_len; slopes [Hq]: ALiBi, by local index."""
    q, k, v = q.double(), k.double(), v.double()
    (n, heads, _), (m, kv_heads, _) = q.shape, k.shape
    if pos_encoding_mode == "ROPE_LLAMA":
        q = rotate_llama(q, rows + (m - q_len), rope_scale, rope_theta)
        k = rotate_llama(k, torch.arange(m, device=k.device), rope_scale, rope_theta)
    seen = see.any(0)[:, None, None]
    k, v = torch.where(seen, k, 0.0), torch.where(seen, v, 0.0)  # slots that nobody sees may hold NaN
    logits = torch.einsum("nkgd,mkd->kgnm", q.reshape(n, kv_heads, heads // kv_heads, q.shape[-1]), k).reshape(heads, n, m) * sm_scale
    if soft_cap and soft_cap > 0:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    if slopes is not None:
        distance = torch.arange(m, device=q.device)[None, :] - rows[:, None]
        logits = logits + slopes.to(q.device)[:, None, None] * distance
    logits = logits.masked_fill(~see[None], -math.inf)
    none = torch.full((heads, n), -math.inf, dtype=torch.float64, device=q.device)
    top = logits.amax(-1) if m else none
    if sinks is not None:
        top = torch.maximum(top, sinks.double()[:, None])
    safe = torch.where(top == -math.inf, 0.0, top)
    p = torch.exp(logits - safe[..., None])
    total = p.sum(-1)
    if sinks is not None:
        total = total + torch.exp(sinks.double()[:, None] - safe)
    o = torch.einsum("kgnm,mkd->nkgd", p.view(kv_heads, heads // kv_heads, n, m), v).reshape(n, heads, v.shape[-1])
    return o / torch.where(total == 0, 1.0, total).T[..., None], (LOG2E * (safe + torch.log(total))).T


def merge(v, s):
    """v [n, parts, H, D], s [n, parts, H] -> (v, s)"""
    v, s = v.double(), s.double()
    total = torch.logsumexp(s / LOG2E, 1) * LOG2E
    weight = torch.exp2(s - total[:, None]).nan_to_num(0.0)
    return (weight[..., None] * v.nan_to_num(0.0)).sum(1), total


def rms_norm(x, weight, eps, offset=0.0):
    x = x.double()
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * (weight.double() + offset)


def layer_norm(x, weight, bias, eps):
    return torch.nn.functional.layer_norm(x.double(), (x.shape[-1],), weight.double(), bias.double(), eps)


def gated(x, kind):
    a, b = x.double().chunk(2, -1)
    act = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu,
           "gelu_tanh": lambda a: torch.nn.functional.gelu(a, approximate="tanh")}[kind]
    return act(a) * b


def rope_angles(positions, rotary_dim, theta, scale, llama31=None):
    """[n, rotary_dim / 2]; llama31: (low_freq_factor, high_freq_factor, old_context_len)."""
    d = torch.arange(rotary_dim // 2, dtype=torch.float64, device=positions.device)
    frequency = theta ** (-2 * d / rotary_dim)
    if llama31 is None:
        frequency = frequency / scale
    else:
        low, high, old = llama31
        s = ((old * frequency / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        frequency = (1 - s) * frequency / scale + s * frequency
    return positions.double()[:, None] * frequency


def rope(x, cos, sin, interleave):
    """x [n, H, D]; cos, sin [n, rotary_dim / 2]; further dims are copied."""
    x, half = x.double(), cos.shape[-1]
    cos, sin = cos[:, None].double(), sin[:, None].double()
    out = x.clone()
    a, b = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleave else (slice(0, half), slice(half, 2 * half))
    out[..., a] = x[..., a] * cos - x[..., b] * sin
    out[..., b] = x[..., b] * cos + x[..., a] * sin
    return out


# ------------------------------------------------------------------------------------------ sampling
def filtered(probs, top_k=None, top_p=None, min_p=None, joint=True):
    """float64 [rows, V] masses that may be drawn, by sorting, and whether each word's membership is beyond doubt.

    Thresholds are None or tensors [rows]. Ties at a threshold and masses within rounding of it are in doubt."""
    p = probs.double()
    ranked, order = torch.sort(p, dim=-1, descending=True, stable=True)
    keep, sure = torch.ones_like(ranked, dtype=torch.bool), torch.ones_like(ranked, dtype=torch.bool)
    if top_k is not None:
        k = top_k.long().clamp(max=p.shape[-1])[:, None]
        k = torch.where(k <= 0, p.shape[-1], k)
        place = torch.arange(p.shape[-1], device=p.device)[None]
        keep &= place < k
        threshold = ranked.gather(-1, k - 1)
        sure &= ranked != threshold
    if top_p is not None:
        base = ranked if joint else torch.where(keep, ranked, 0.0)
        total = base.sum(-1, keepdim=True)
        before = base.cumsum(-1) - base
        limit = top_p.double()[:, None] * total
        keep &= before < limit
        sure &= (before - limit).abs() > 1e-5 * total
        sure |= top_p.double()[:, None] >= 1
    if min_p is not None:
        limit = min_p.double()[:, None] * ranked[:, :1]
        keep &= ranked >= limit
        sure &= (ranked - limit).abs() > 1e-6 * limit
    back = torch.argsort(order, -1)
    return p * keep.gather(-1, back), sure.gather(-1, back)


def philox(seed, offset, place):
    """64 random bits as a number in [0, 1) per row: Philox4x32-10, key = seed, counter = (offset, place, 0)."""
    import numpy as np
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    seed, offset, place = (np.asarray(x, np.uint64) for x in (seed, offset, place))
    shape = np.broadcast(seed, offset, place).shape
    c = [np.broadcast_to(x, shape).copy() for x in (offset & low, offset >> high, place, np.uint64(0))]
    k = [np.broadcast_to(x, shape).copy() for x in (seed & low, seed >> high)]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> high) ^ c[1] ^ k[0], b & low, (a >> high) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return (c[0].astype(np.float64) + c[1].astype(np.float64) * 2.0**32) / 2.0**64
