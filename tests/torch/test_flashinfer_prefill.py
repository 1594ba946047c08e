"""fulmen.flashinfer's prefill wrappers, masks and single requests against plain float64 attention: on each device that is here."""
import math

import pytest

torch = pytest.importorskip("torch")

import fulmen.flashinfer as fi  # noqa: E402
from attention_reference import attention, check, pages  # noqa: E402
from flashinfer_calls import indptr_of, reference_options, supported, workspace  # noqa: E402

LENGTHS = [(3, 17), (0, 5), (1, 64), (5, 0), (7, 33), (4, 2)]  # (rows, keys): empty rows, no keys, more rows than keys


@pytest.mark.parametrize("where", ["host", "device", "mixed"])
@pytest.mark.parametrize("options", [{"causal": True}, {}, {"causal": True, "window_left": 3}, {"window_left": 0},
                                     {"causal": True, "logits_soft_cap": 3.0},
                                     {"causal": True, "pos_encoding_mode": "ROPE_LLAMA", "rope_theta": 1e5, "rope_scale": 2.0},
                                     {"causal": True, "pos_encoding_mode": "ALIBI"}], ids=str)
@pytest.mark.parametrize("dtype,page_size,layout", [(torch.float16, 4, "NHD"), (torch.bfloat16, 16, "HND")])
def test_paged_prefill(device, where, options, dtype, page_size, layout):
    hq, hk, d = 6, 3, 64
    rows, lengths = zip(*LENGTHS)
    cache, indptr, indices, last, keys, values = pages(lengths, page_size, hk, d, dtype, layout, device=device)
    qkv = torch.randn(sum(rows), hq * d + 64, device=device).to(dtype)
    q = qkv[:, :hq * d].unflatten(1, (hq, d))  # a slice of a wider row
    qo = indptr_of(rows)
    place = {"host": lambda i, x: x.cpu(), "device": lambda i, x: x.to(device), "mixed": lambda i, x: x.cpu() if i % 2 else x.to(device)}[where]
    given = [place(i, x).clone() for i, x in enumerate((qo, indptr, indices, last))]
    wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(workspace(device), layout)
    supported(lambda: wrapper.plan(*given, hq, hk, d, page_size, q_data_type=dtype, **options))
    for x in given:
        if not x.is_cuda:
            x.fill_(-1)  # the host may overwrite what it gave
    for base, turn in (("log2", 1.0), ("ln", 1 / math.log2(math.e))):
        out, lse = wrapper.run(q, cache, return_lse=True, lse_base=base)
        for r in range(len(rows)):
            part = slice(int(qo[r]), int(qo[r + 1]))
            want, want_lse = attention(q[part], keys[r], values[r], causal=options.get("causal", False), **reference_options(options, hq))
            check(out[part], lse[part], want, want_lse * turn, dtype)
    transposed = torch.empty(hq, sum(rows), device=device)
    wrapper.run(q, cache, lse=transposed, lse_layout="HN")  # a given lse is filled without return_lse
    torch.testing.assert_close(transposed.t(), wrapper.run(q, cache, return_lse=True)[1])


@pytest.mark.parametrize("dims", [(64, 64), (192, 128)])
def test_ragged_prefill(device, dims):
    dtype, hq, hk = torch.bfloat16, 4, 2
    rows, lengths = zip(*LENGTHS)
    q = torch.randn(sum(rows), hq, dims[0], device=device).to(dtype)
    k, v = (torch.randn(sum(lengths), hk, n, device=device).to(dtype) for n in dims)
    qo, kv = indptr_of(rows), indptr_of(lengths)
    wrapper = fi.BatchPrefillWithRaggedKVCacheWrapper(workspace(device))
    wrapper.plan(qo.to(device), kv.to(device), hq, hk, dims[0], dims[1], causal=True, q_data_type=dtype)
    out, lse = wrapper.run(q, k, v, return_lse=True)
    for r in range(len(rows)):
        part, of = slice(int(qo[r]), int(qo[r + 1])), slice(int(kv[r]), int(kv[r + 1]))
        check(out[part], lse[part], *attention(q[part], k[of], v[of], causal=True), dtype)
    with pytest.raises(ValueError, match="qo_indptr"):
        wrapper.plan(qo, kv, hq, hk, dims[0], dims[1], q_data_type=dtype)
        wrapper.run(q[:-1], k, v)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("where", ["cpu", "device"])
def test_custom_masks(device, packed, where):
    dtype, hq, hk, d, page_size = torch.float16, 4, 2, 64, 4
    rows, lengths = zip(*LENGTHS)
    cache, indptr, indices, last, keys, values = pages(lengths, page_size, hk, d, dtype, device=device)
    masks = [torch.rand(n, m) < 0.5 for n, m in LENGTHS]
    flat = torch.cat([m.flatten() for m in masks])
    kwargs = {"custom_mask": flat.to(device)}
    if packed:  # each request on a byte of its own, little-endian; it wins over the other form
        segments = [torch.nn.functional.pad(m.flatten(), (0, -m.numel() % 8)).reshape(-1, 8) for m in masks]
        bits = torch.cat([(s.int() << torch.arange(8)).sum(1) for s in segments]).to(torch.uint8)
        kwargs = {"packed_custom_mask": bits.to(device), "custom_mask": ~flat.to(device)}
    wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(workspace(device))
    q = torch.randn(sum(rows), hq, d, device=device).to(dtype)
    qo = indptr_of(rows)
    place = (lambda x: x.cpu()) if where == "cpu" else (lambda x: x.to(device))
    supported(lambda: wrapper.plan(*map(place, (qo, indptr, indices, last)), hq, hk, d, page_size, causal=True, **kwargs))
    out, lse = wrapper.run(q, cache, return_lse=True)
    for r in range(len(rows)):
        part = slice(int(qo[r]), int(qo[r + 1]))
        check(out[part], lse[part], *attention(q[part], keys[r], values[r], mask=masks[r]), dtype)
    if where == "cpu" and not packed:
        with pytest.raises(ValueError, match="custom_mask"):
            wrapper.plan(*map(place, (qo, indptr, indices, last)), hq, hk, d, page_size, custom_mask=flat[:-1])


def test_mask_in_graph_buffers(device):
    dtype, hq, hk, d, page_size = torch.float16, 2, 1, 64, 4
    cache, indptr, indices, last, keys, values = pages([5, 9], page_size, hk, d, dtype, device=device)
    buffers = [torch.empty(n, dtype=torch.int32, device=device) for n in (3, 3, 16, 2)]
    bits = torch.zeros(64, dtype=torch.uint8, device=device)
    offsets = torch.zeros(3, dtype=torch.int32, device=device)
    wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(workspace(device), "NHD", True, *buffers, bits, offsets)
    q = torch.randn(6, hq, d, device=device).to(dtype)
    for rows in ([2, 4], [3, 1]):
        masks = [torch.rand(n, m) < 0.5 for n, m in zip(rows, (5, 9))]
        supported(lambda: wrapper.plan(indptr_of(rows), indptr.cpu(), indices, last.cpu(), hq, hk, d, page_size,
                                       custom_mask=torch.cat([m.flatten() for m in masks])))
        assert wrapper._custom_mask_buf is bits
        out = wrapper.run(q, cache)
        check(out[:rows[0]], None, attention(q[:rows[0]], keys[0], values[0], mask=masks[0])[0], None, dtype)
        part = slice(rows[0], sum(rows))
        check(out[part], None, attention(q[part], keys[1], values[1], mask=masks[1])[0], None, dtype)
    with pytest.raises(ValueError, match="cannot exceed"):
        wrapper.plan(indptr_of([4, 4]), indptr.cpu(), indices, last.cpu(), hq, hk, d, page_size)


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_multi_item_scoring(device, where):
    dtype, hq, hk, d, page_size = torch.float16, 4, 2, 64, 4
    prefix, items = [6, 3], [[0, 1, 2, 0, 1, 0], [0, 1, 1 + 1, 3, 0]]  # a delimiter is place 0
    rows = [len(items[0]) + 2, len(items[1])]  # the first request computes the end of its prefix too
    lengths = [p + len(i) for p, i in zip(prefix, items)]
    cache, indptr, indices, last, keys, values = pages(lengths, page_size, hk, d, dtype, device=device)
    width = 9
    places = torch.zeros(2, width, dtype=torch.int64)
    masks = []
    for r, (p, item, n) in enumerate(zip(prefix, items, lengths)):
        places[r, :len(item)] = torch.tensor(item)
        mask = torch.zeros(rows[r], n, dtype=torch.bool)
        for i in range(rows[r]):
            at = i + n - rows[r]
            if at < p:
                mask[i, :at + 1] = True
            else:
                mask[i, :p] = True
                t = item[at - p]
                mask[i, at + 1 - t:at + 1] = t > 0
        masks.append(mask)
    q = torch.randn(sum(rows), hq, d, device=device).to(dtype)
    qo = indptr_of(rows)
    place = (lambda x: x.cpu()) if where == "cpu" else (lambda x: x.to(device))
    wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(workspace(device))
    supported(lambda: wrapper.plan(
        *map(place, (qo, indptr, indices, last)), hq, hk, d, page_size, causal=True,
        prefix_len_ptr=torch.tensor(prefix, dtype=torch.int32, device=device),
        token_pos_in_items_ptr=places.to(torch.int16).reshape(-1).to(device), token_pos_in_items_len=width))
    out = wrapper.run(q, cache)
    for r in range(2):
        part = slice(int(qo[r]), int(qo[r + 1]))
        check(out[part], None, attention(q[part], keys[r], values[r], mask=masks[r])[0], None, dtype)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("n,m", [(1, 1), (5, 70), (3, 0), (9, 4)])
def test_single_requests(device, layout, n, m):
    dtype, hq, hk, d = torch.float16, 8, 2, 64
    q = torch.randn(n, hq, d, device=device).to(dtype)
    k, v = (torch.randn(m, hk, d, device=device).to(dtype) for _ in range(2))
    given = (k, v) if layout == "NHD" else (k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous())
    out, lse = fi.single_prefill_with_kv_cache_return_lse(q, *given, kv_layout=layout)
    check(out, lse, *attention(q, k, v), dtype)
    if m >= n:
        check(fi.single_prefill_with_kv_cache(q, *given, causal=True, kv_layout=layout), None, attention(q, k, v, causal=True)[0], None, dtype)
    else:
        with pytest.raises(ValueError, match="kv_len >= qo_len"):
            fi.single_prefill_with_kv_cache(q, *given, causal=True, kv_layout=layout)
    mask = torch.rand(n, m, device=device) < 0.6
    masked = supported(lambda: fi.single_prefill_with_kv_cache(q, *given, custom_mask=mask, kv_layout=layout))
    check(masked, None, attention(q, k, v, mask=mask)[0], None, dtype)
    assert torch.equal(masked, fi.single_prefill_with_kv_cache(q, *given, custom_mask=mask.flatten(), kv_layout=layout))
    with pytest.raises(ValueError, match="custom_mask"):
        fi.single_prefill_with_kv_cache(q, *given, custom_mask=mask.new_ones(n * m + 1), kv_layout=layout)
    out, lse = fi.single_decode_with_kv_cache(q[0], *given, kv_layout=layout, return_lse=True, k_scale=0.5, v_scale=2.0)
    want, want_lse = attention(q[:1], k, v, sm_scale=0.5 / math.sqrt(d))
    check(out[None], lse[None], 2 * want, want_lse, dtype)


def test_a_lone_visible_key_has_weight_one(device):
    q = torch.full((1, 1, 64), -700.0, device=device).half()
    k, v = torch.full((1, 1, 64), 700.0, device=device).half(), torch.randn(1, 1, 64, device=device).half()
    out, lse = fi.single_prefill_with_kv_cache(q, k, v, return_lse=True, causal=True, sm_scale=1 / 64)
    # CUDA's exponent is rounded once: at logits of this size the weight and its 16-bit rounding differ by a unit
    torch.testing.assert_close(out, v, rtol=0 if device == "cpu" else 1e-3, atol=0)
    assert float(lse) == pytest.approx(-700.0 * 700.0 / math.log(2), rel=1e-5)
