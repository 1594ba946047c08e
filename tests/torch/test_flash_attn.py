"""fulmen.flash_attn against plain float64, over layouts, windows, caches and appended keys: on a GPU where there is one."""
import math

import pytest

torch = pytest.importorskip("torch")
from fulmen import Unsupported  # noqa: E402
from fulmen.flash_attn import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache  # noqa: E402

CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.float16) if CUDA else ("cpu", torch.float32)


def randn(*shape):
    return torch.randn(*shape).to(DEVICE, DTYPE)


def reference(q, k, v, *, causal=False, window=-1, softcap=0.0, slopes=None, scale=None):
    """One request: q [n, Hq, D], k, v [m, Hkv, D] -> (out, lse [Hq, n])"""
    (n, heads, dim), m = q.shape, k.shape[0]
    q, k, v = q.cpu().double(), *(x.cpu().double().repeat_interleave(heads // k.shape[1], 1) for x in (k, v))
    logits = torch.einsum("nhd,mhd->hnm", q, k) * (dim**-0.5 if scale is None else scale)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    at, key = torch.arange(n)[:, None] + m - n, torch.arange(m)[None]
    if slopes is not None:
        logits = logits + slopes.cpu().double()[:, None, None] * (key - at)
    see = torch.ones(n, m, dtype=torch.bool)
    if causal:
        see &= key <= at
    if window >= 0:
        see &= key >= at - window
    logits = logits.masked_fill(~see, -math.inf)
    lse = torch.logsumexp(logits, -1)
    return torch.einsum("hnm,mhd->nhd", torch.exp(logits - lse[..., None]).nan_to_num(0.0), v), lse


def close(actual, expected):
    rtol, atol = (4e-3, 4e-3) if CUDA else (1e-4, 1e-5)
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("causal, window, softcap, alibi", [
    (False, -1, 0.0, False), (True, -1, 0.0, False), (True, 3, 0.0, False), (False, 4, 0.0, False), (True, -1, 5.0, False),
    (True, -1, 0.0, True)])
@pytest.mark.parametrize("q_len, kv_len", [(5, 5), (1, 70), (7, 300), (9, 4)])
def test_dense(causal, window, softcap, alibi, q_len, kv_len):
    torch.manual_seed(0)
    q, k, v = randn(2, q_len, 4, 32), randn(2, kv_len, 2, 32), randn(2, kv_len, 2, 32)
    k = k.transpose(1, 2).contiguous().transpose(1, 2)  # strides of a cache that keeps heads apart
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.05], device=DEVICE) if alibi else None
    out, lse, _ = flash_attn_func(q, k, v, causal=causal, window_size=(window, -1), softcap=softcap, alibi_slopes=slopes,
                                  return_attn_probs=True)
    for b in range(2):
        o, s = reference(q[b], k[b], v[b], causal=causal, window=window, softcap=softcap, slopes=slopes)
        close(out[b], o), close(lse[b], s)


@pytest.mark.parametrize("paged", [False, True])
def test_varlen(paged):
    torch.manual_seed(1)
    q_lens, kv_lens, page = [3, 0, 6, 1], [10, 4, 6, 33], 8
    q = randn(sum(q_lens), 4, 16)
    ks, vs = ([randn(n, 2, 16) for n in kv_lens] for _ in range(2))
    ends = [torch.tensor([0, *torch.tensor(x).cumsum(0).tolist()], dtype=torch.int32, device=DEVICE) for x in (q_lens, kv_lens)]
    k, v, table = torch.cat(ks), torch.cat(vs), None
    if paged:
        table = torch.arange(4 * 5, dtype=torch.int32, device=DEVICE).flip(0).view(4, 5).contiguous()
        k, v = (torch.full((20, page, 2, 16), math.nan, device=DEVICE, dtype=DTYPE) for _ in range(2))
        for b in range(4):
            for i in range(kv_lens[b]):
                k[table[b, i // page], i % page], v[table[b, i // page], i % page] = ks[b][i], vs[b][i]
    out, lse, _ = flash_attn_varlen_func(q, k, v, *ends, max(q_lens), max(kv_lens), causal=True, block_table=table,
                                         return_attn_probs=True)
    for b in range(4):
        rows = slice(ends[0][b], ends[0][b + 1])
        o, s = reference(q[rows], ks[b], vs[b], causal=True)
        close(out[rows], o), close(lse[:, rows], s)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("paged", [False, True])
def test_cache_with_new_keys_and_rotation(paged, interleaved):
    torch.manual_seed(2)
    batch, new, dim, page = 3, 2, 16, 4
    lens = torch.tensor([0, 5, 9], dtype=torch.int32, device=DEVICE)
    q, k, v = randn(batch, new, 4, dim), randn(batch, new, 2, dim), randn(batch, new, 2, dim)
    angle = torch.arange(32)[:, None] * 100.0 ** (-torch.arange(dim // 2) / (dim // 2))
    table = torch.randperm(12).view(3, 4).int().to(DEVICE) if paged else None
    shape = (12, page, 2, dim) if paged else (batch, 16, 2, dim)
    k_cache, v_cache = randn(*shape), randn(*shape)

    def rows(cache, b, n):
        flat = cache[table[b].long()].reshape(-1, 2, dim) if paged else cache[b]
        return flat[:n].cpu().double()

    def rotated(x, at):  # one row [H, D]
        x = x.cpu().double()
        a, b = (x[:, ::2], x[:, 1::2]) if interleaved else x.chunk(2, -1)
        c, s = angle[at].cos(), angle[at].sin()
        pair = (a * c - b * s, b * c + a * s)
        return torch.stack(pair, -1).flatten(1) if interleaved else torch.cat(pair, -1)

    expected = []
    for b in range(batch):
        n = int(lens[b])
        ks = torch.cat([rows(k_cache, b, n), torch.stack([rotated(k[b, i], n + i) for i in range(new)])])
        vs = torch.cat([rows(v_cache, b, n), v[b].cpu().double()])
        expected.append((reference(torch.stack([rotated(q[b, i], n + i) for i in range(new)]), ks, vs, causal=True)[0], ks, vs))
    out = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, angle.cos().to(q), angle.sin().to(q), lens, block_table=table, causal=True,
                                  rotary_interleaved=interleaved)
    for b, (o, ks, vs) in enumerate(expected):
        close(out[b], o)
        close(rows(k_cache, b, len(ks)), ks), close(rows(v_cache, b, len(vs)), vs)


def test_what_is_refused():
    q = randn(1, 2, 2, 16)
    for options in ({"dropout_p": 0.1}, {"window_size": (2, 3)}, {"alibi_slopes": torch.ones(1, 2, device=DEVICE), "causal": True}):
        with pytest.raises(Unsupported):
            flash_attn_func(q, q, q, **options)
    with pytest.raises(Unsupported, match="gradients"):
        flash_attn_func(q.clone().requires_grad_(), q, q)


@pytest.mark.skipif(not CUDA, reason="graphs are a GPU's")
@pytest.mark.parametrize("same_stream", [True, False])
def test_a_captured_call_keeps_its_memory(same_stream):
    """Calls of many other kinds on the same stream, and memory given back, between capture and replay. The call before the
    capture loads the kernels, and on its own stream it has memory that the capture takes too."""
    torch.manual_seed(0)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    q, k, v = randn(3, 1, 4, 64), randn(3, 5000, 2, 64), randn(3, 5000, 2, 64)
    window = 40 + same_stream, -1
    torch.cuda.synchronize()
    with torch.cuda.stream(stream if same_stream else torch.cuda.Stream()):
        flash_attn_func(q, k, v, window_size=window)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        out = flash_attn_func(q, k, v, window_size=window)
    with torch.cuda.stream(stream):
        for other in range(20):
            flash_attn_func(q, k, v, window_size=(100 + other, -1))
        stream.synchronize()
        torch.cuda.empty_cache()
        junk = [torch.full((1 << 20,), 0x7f, dtype=torch.uint8, device=DEVICE) for _ in range(200)]
        for _ in range(3):
            for x in (q, k, v):
                x.normal_()
            graph.replay()
            assert torch.equal(out, flash_attn_func(q, k, v, window_size=window))
            for b in range(3):
                close(out[b], reference(q[b], k[b], v[b], window=window[0])[0])
    del junk
