"""Plain float64 attention on torch tensors, one request at a time; nothing here is shared with the library."""
import math

import torch


def attention(q, k, v, *, causal=False, window_left=-1, sm_scale=None, soft_cap=0.0, mask=None, alibi=None, rope=None,
              sinks=None):
    """q [n, Hq, D], k [m, Hkv, D], v [m, Hkv, Dv] -> (o float64 [n, Hq, Dv], lse float64 [n, Hq] in base 2).

    mask bool [n, m] replaces causality; alibi: slopes [Hq], biased by key - local row; rope: (theta, scale); sinks [Hq]
    natural logarithms."""
    q, k, v = (x.double().cpu() for x in (q, k, v))
    n, hq, d = q.shape
    m, hk, _ = k.shape
    rows, keys = torch.arange(n)[:, None] + (m - n), torch.arange(m)[None]
    if rope is not None:
        q, k = rotate(q, rows[:, 0], *rope), rotate(k, keys[0], *rope)
    k, v = (x.repeat_interleave(hq // hk, 1) for x in (k, v))
    s = torch.einsum("nhd,mhd->hnm", q, k) * (1 / math.sqrt(d) if sm_scale is None else sm_scale)
    if soft_cap:
        s = soft_cap * torch.tanh(s / soft_cap)
    if alibi is not None:
        origin = 0 if sinks is None else m - n  # beside a sink the bias counts from the request's first key
        s = s + alibi.double().cpu()[:, None, None] * (keys - torch.arange(n)[:, None] - origin)
    visible = torch.ones(n, m, dtype=torch.bool)
    if mask is not None:
        visible &= mask.cpu().bool()
    elif causal:
        visible &= keys <= rows
    if window_left >= 0:
        visible &= keys >= rows - window_left
    s = s.masked_fill(~visible[None], -math.inf)
    if sinks is not None:
        s = torch.cat([s, sinks.double().cpu()[:, None, None].expand(hq, n, 1)], -1)
        v = torch.cat([v, v.new_zeros(1, hq, v.shape[2])])
    lse = torch.logsumexp(s, -1) if s.shape[-1] else s.new_full((hq, n), -math.inf)
    p = torch.exp(s - lse[..., None].nan_to_num(neginf=0.0))
    p = torch.where(torch.isneginf(lse)[..., None], torch.zeros_like(p), p)
    return torch.einsum("hnm,mhd->nhd", p, v), lse.t() / math.log(2)


def rotate(x, positions, theta, scale):
    half = x.shape[-1] // 2
    angle = positions.double()[:, None] * theta**(-torch.arange(half).double() / half) / scale
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def slopes(heads):
    n = 2**int(math.floor(math.log2(heads)))
    return torch.tensor([2**(-8 * h / n) for h in range(1, n + 1)] + [2**(-4 * i / n) for i in range(1, 2 * (heads - n), 2)])


def pages(lengths, page_size, heads, d, dtype, layout="NHD", dv=None, device="cpu"):
    """A paged cache whose unwritten slots are NaN. -> ((k, v), indptr, indices, last_page_len, keys, values)"""
    dv = dv or d
    counts = [-(-n // page_size) for n in lengths]
    pool = sum(counts) + 3
    order = torch.randperm(pool)
    caches = [torch.full((pool, page_size, heads, w), math.nan) for w in (d, dv)]
    rows, at = ([], []), 0
    for n, count in zip(lengths, counts):
        own = order[at:at + count]
        at += count
        for cache, kept, w in zip(caches, rows, (d, dv)):
            x = torch.randn(n, heads, w).to(dtype)
            kept.append(x.to(device))
            for t in range(n):
                cache[own[t // page_size], t % page_size] = x[t].float()
    caches = [c.to(dtype) for c in caches]
    if layout == "HND":
        caches = [c.transpose(1, 2).contiguous() for c in caches]
    indptr = torch.tensor([0] + counts).cumsum(0).int()
    last = torch.tensor([0 if n == 0 else (n - 1) % page_size + 1 for n in lengths]).int()
    indices = torch.cat([order[:at], torch.tensor([-7, 1 << 30])]).int()  # longer than indptr[-1]: never read
    caches, (indptr, indices, last) = [c.to(device) for c in caches], (x.to(device) for x in (indptr, indices, last))
    return tuple(caches), indptr, indices, last, *rows


def check(out, lse, want, want_lse, dtype):
    """Within the rounding of the output's dtype; exact where a row sees nothing."""
    tolerance = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(out.double().cpu(), want, rtol=tolerance, atol=tolerance)
    if lse is not None:
        tolerance = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 1e-2}[dtype]  # rotated keys are rounded
        torch.testing.assert_close(lse.double().cpu(), want_lse, rtol=1e-3, atol=tolerance)
