import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import reference
from on_device import ATTENTION_CLOSE, ATTENTION_DTYPE, NUMPY_DTYPE, context, fulmen, needs_cpu

RNG = np.random.default_rng(11)


def make_cache(kv_lens, page_size, heads, d):
    counts = [-(-n // page_size) for n in kv_lens]
    pool = sum(counts) + 3
    pages = RNG.permutation(pool)[:sum(counts)]
    k, v = (np.full((pool, page_size, heads, d), np.nan, NUMPY_DTYPE) for _ in range(2))  # unwritten slots are poison
    table = np.full((len(kv_lens), max(counts + [1])), -1, np.int32)
    keys, values, at = [], [], 0
    for r, n in enumerate(kv_lens):
        table[r, :counts[r]] = pages[at:at + counts[r]]
        at += counts[r]
        kr, vr = (RNG.standard_normal((n, heads, d)).astype(NUMPY_DTYPE) for _ in range(2))
        for t in range(n):
            page, slot = table[r, t // page_size], t % page_size
            k[page, slot], v[page, slot] = kr[t], vr[t]
        keys.append(kr)
        values.append(vr)
    return k, v, table, keys, values


@given(lens=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), min_size=1, max_size=4),
       page_size=st.sampled_from([1, 3, 16]), heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
       d=st.sampled_from([8, 24, 64]), causal=st.booleans(), window=st.sampled_from([-1, 0, 7]))
@settings(max_examples=40, deadline=None)
def test_paged_attention(lens, page_size, heads, d, causal, window):
    qo_lens, kv_lens = [n for n, _ in lens], [m for _, m in lens]
    hq, hk = heads
    k, v, table, keys, values = make_cache(kv_lens, page_size, hk, d)
    q = RNG.standard_normal((sum(qo_lens), hq, d)).astype(NUMPY_DTYPE)
    indptr = np.cumsum([0] + qo_lens).astype(np.int32)
    att = fulmen.Attention(context(), [fulmen.Group(hq, hk, causal=causal, window_left=window)], dtype=ATTENTION_DTYPE,
                           head_dim=d, max_requests=len(lens), max_rows=max(1, sum(qo_lens)), max_kv_len=max(kv_lens + [1]))
    att.plan(indptr, np.array(kv_lens, np.int32))
    o, lse = att.run(q, k, v, table, return_lse=True)
    for r in range(len(lens)):
        rows = slice(indptr[r], indptr[r + 1])
        want, want_lse = reference.attention(q[rows], keys[r], values[r], causal=causal, window_left=window)
        np.testing.assert_allclose(o[rows], want, **ATTENTION_CLOSE)
        np.testing.assert_allclose(lse[rows], want_lse, rtol=1e-4, atol=1e-4)


def test_append_then_attend_in_hnd_layout():
    heads, d, page = 2, 16, 4
    cache = [np.full((5, heads, page, d), np.nan, NUMPY_DTYPE) for _ in range(2)]
    k_cache, v_cache = (c.transpose(0, 2, 1, 3) for c in cache)  # HND: a permuted view
    k, v = (RNG.standard_normal((6, heads, d)).astype(NUMPY_DTYPE) for _ in range(2))
    table = np.array([[3, 1]], np.int32)
    fulmen.append_kv(k, v, k_cache, v_cache, qo_indptr=np.array([0, 6], np.int32), kv_len=np.array([6], np.int32), table=table)
    q = RNG.standard_normal((6, heads, d)).astype(NUMPY_DTYPE)
    att = fulmen.Attention(context(), [fulmen.Group(heads, heads)], dtype=ATTENTION_DTYPE, head_dim=d, max_requests=1,
                           max_rows=6, max_kv_len=8)
    att.plan(np.array([0, 6], np.int32), np.array([6], np.int32))
    np.testing.assert_allclose(att.run(q, k_cache, v_cache, table), reference.attention(q, k, v)[0], **ATTENTION_CLOSE)


def test_shared_prefix_level_gives_the_bits_of_the_flat_call():
    heads, d, page, shared, own = 2, 32, 16, 512, 16
    k, v, table, *_ = make_cache([shared + own] * 3, page, heads, d)
    table[1:, :shared // page] = table[0, :shared // page]
    q = RNG.standard_normal((3, heads, d)).astype(NUMPY_DTYPE)
    rows = np.arange(4, dtype=np.int32)
    limits = dict(dtype=ATTENTION_DTYPE, head_dim=d, max_requests=3, max_rows=3, max_kv_len=shared + own, batch_invariant=True)
    one = context()
    flat = fulmen.Attention(one, [fulmen.Group(heads, heads)], **limits)
    flat.plan(rows, np.full(3, shared + own, np.int32))
    tree = fulmen.Attention(one, [fulmen.Group(heads, heads)], num_levels=2, **limits)
    tree.plan(None, levels=[{"qo_indptr": np.array([0, 3], np.int32), "kv_len": np.array([shared], np.int32)},
                            {"qo_indptr": rows, "kv_len": np.full(3, own, np.int32)}])
    both = [np.ascontiguousarray(table[:1, :shared // page]), np.ascontiguousarray(table[:, shared // page:])]
    np.testing.assert_array_equal(flat.run(q, k, v, table), tree.run(q, k, v, both))


def test_output_scale_and_base_2():
    k, v, table, *_ = make_cache([5, 40], 16, 2, 32)
    q, rows = RNG.standard_normal((2, 4, 32)).astype(NUMPY_DTYPE), np.arange(3, dtype=np.int32)
    att = fulmen.Attention(context(), [fulmen.Group(4, 2)], dtype=ATTENTION_DTYPE, head_dim=32, max_requests=2, max_rows=2,
                           max_kv_len=40)
    att.plan(rows, np.array([5, 40], np.int32))
    o, lse = att.run(q, k, v, table, return_lse=True)
    scaled, base2 = att.run(q, k, v, table, return_lse=True, o_scale=-0.5, lse_base2=True)
    np.testing.assert_array_equal(scaled, -0.5 * o)
    np.testing.assert_allclose(base2, lse * np.log2(np.e), rtol=1e-6)
    with pytest.raises(fulmen.InvalidArgument, match="o_scale: expected a finite number"):
        att.run(q, k, v, table, o_scale=float("inf"))


@needs_cpu
def test_refusals():
    with pytest.raises(fulmen.Unsupported, match="head_dim_qk: expected a multiple of 8"):
        fulmen.Attention(context(), [fulmen.Group(4, 2)], dtype=ATTENTION_DTYPE, head_dim=12, max_requests=1, max_rows=1, max_kv_len=1)
    with pytest.raises(ValueError, match="features"):
        fulmen.Attention(context(), [fulmen.Group(4, 2)], dtype=ATTENTION_DTYPE, head_dim=16, max_requests=1, max_rows=1,
                         max_kv_len=1, features=["warp"])


@needs_cpu
def test_a_users_variant_is_for_a_gpu():
    variant = ("Every", "struct Every { struct Params { int step; }; static FULMEN_FN bool visible(const Params& p, "
               "const VariantAt& at) { return at.key % p.step == 0; } };")
    limits = dict(dtype="f16", head_dim=16, max_requests=1, max_rows=1, max_kv_len=8)
    with pytest.raises(fulmen.Unsupported, match="variant_source"):
        fulmen.Attention(context(), [fulmen.Group(2, 1)], variant=variant, **limits)
    spec = {"q_dtype": "f16", "head_dim_qk": 16, "variant": {"name": variant[0], "source": variant[1]}}
    assert fulmen.supports("sm_90a", "attention", spec=spec) == ""
    assert "variant_name" in fulmen.supports("sm_90a", "attention", spec={**spec, "variant": {"name": "not a name", "source": variant[1]}})
