"""fulmen.flashinfer's attention on random shapes, strides and options, and how long its objects live."""
import gc
import weakref

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("hypothesis")

from hypothesis import given, settings, strategies as st  # noqa: E402

import fulmen.flashinfer as fi  # noqa: E402
from attention_reference import attention, check, pages, slopes  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def strided(x, gap):
    """The same values in a wider tensor: rows and heads lie `gap` apart, the last dimension densely."""
    if not gap:
        return x
    wide = torch.full((*x.shape[:-2], x.shape[-2] + 1, x.shape[-1] + gap), float("nan"), dtype=x.dtype, device=x.device)
    wide[..., :-1, :x.shape[-1]] = x
    return wide[..., :-1, :x.shape[-1]]


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 90)), min_size=1, max_size=5),
       page_size=st.sampled_from([1, 3, 16, 64]), heads=st.sampled_from([(1, 1), (4, 2), (6, 1), (5, 5)]),
       d=st.sampled_from([(16, 16), (64, 64), (128, 64), (192, 128)]), dtype=st.sampled_from([torch.float16, torch.bfloat16]),
       layout=st.sampled_from(["NHD", "HND"]), causal=st.booleans(), window=st.sampled_from([-1, 0, 9]),
       mode=st.sampled_from(["NONE", "ALIBI", "ROPE_LLAMA"]), cap=st.sampled_from([None, 4.0]), masked=st.booleans(),
       sinks=st.booleans(), host=st.booleans(), gap=st.sampled_from([0, 8]), seed=st.integers(0, 1 << 20))
def test_paged_prefill(lengths, page_size, heads, d, dtype, layout, causal, window, mode, cap, masked, sinks, host, gap, seed):
    torch.manual_seed(seed)
    (hq, hk), (dk, dv) = heads, d
    rows, keys_of = zip(*lengths)
    cache, indptr, indices, last, keys, values = pages(keys_of, page_size, hk, dk, dtype, layout, dv, DEVICE)
    q = strided(torch.randn(sum(rows), hq, dk, device=DEVICE).to(dtype), gap)
    qo = torch.tensor([0, *rows]).cumsum(0).int()
    masks = [torch.rand(n, m) < 0.5 for n, m in lengths]
    where = "cpu" if host else DEVICE
    wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(torch.empty(256, dtype=torch.uint8, device=DEVICE), layout)
    sink = torch.randn(hq, device=DEVICE) if sinks else None
    wrapper.plan(*(x.to(where) for x in (qo, indptr, indices, last)), hq, hk, dk, page_size, head_dim_vo=dv, causal=causal,
                 custom_mask=torch.cat([m.flatten() for m in masks]).to(where) if masked else None, window_left=window,
                 pos_encoding_mode=mode, logits_soft_cap=cap, q_data_type=dtype)
    out, lse = wrapper.run(q, tuple(strided(c, gap) for c in cache), return_lse=True, sinks=sink)
    for r in range(len(rows)):
        part = slice(int(qo[r]), int(qo[r + 1]))
        mask = masks[r] if masked else None
        want, want_lse = attention(q[part], keys[r], values[r], causal=causal, window_left=window, mask=mask,
                                   soft_cap=cap or 0.0, alibi=slopes(hq) if mode == "ALIBI" else None,
                                   rope=(1e4, 1.0) if mode == "ROPE_LLAMA" else None, sinks=sink)
        _, sees = attention(q[part], keys[r], values[r], causal=causal, window_left=window, mask=mask)
        want_lse = torch.where(torch.isneginf(sees), sees, want_lse)  # without a key there is no softmax, sink or not
        check(out[part], lse[part], want, want_lse, dtype)


def test_wrappers_are_freed_without_a_collection():
    gc.collect()
    gc.disable()
    try:
        for make in (fi.BatchDecodeWithPagedKVCacheWrapper, fi.BatchPrefillWithPagedKVCacheWrapper):
            cache, indptr, indices, last, *_ = pages([9], 4, 2, 64, torch.float16, device=DEVICE)
            wrapper = make(torch.empty(256, dtype=torch.uint8, device=DEVICE))
            head = () if make is fi.BatchDecodeWithPagedKVCacheWrapper else (torch.tensor([0, 1], dtype=torch.int32),)
            wrapper.plan(*head, indptr, indices, last, 2, 2, 64, 4)
            wrapper.run(torch.randn(1, 2, 64, device=DEVICE).half(), cache)
            seen = weakref.ref(wrapper)
            module = wrapper._cached_module
            del wrapper
            assert seen() is None
            with pytest.raises(RuntimeError, match="gone"):
                module.plan()
    finally:
        gc.enable()


def test_a_plan_outlives_the_tensors_that_it_was_given():
    cache, indptr, indices, last, keys, values = pages([40, 7], 8, 2, 64, torch.float16, device=DEVICE)
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(torch.empty(256, dtype=torch.uint8, device=DEVICE))
    wrapper.plan(indptr.clone(), indices.clone(), last.clone(), 4, 2, 64, 8)
    wrapper.reset_workspace_buffer(*(torch.empty(64, dtype=torch.uint8, device=DEVICE) for _ in range(2)))
    noise = [torch.full_like(indptr, 1 << 29) for _ in range(64)]  # takes what was freed
    q = torch.randn(2, 4, 64, device=DEVICE).half()
    out = wrapper.run(q, cache)
    for r in range(2):
        check(out[r:r + 1], None, attention(q[r:r + 1], keys[r], values[r])[0], None, torch.float16)
    del noise
