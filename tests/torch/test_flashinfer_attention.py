"""fulmen.flashinfer's attention wrappers against plain float64 attention: on the CPU, and on CUDA where there is one."""
import functools
import math

import pytest

torch = pytest.importorskip("torch")

import fulmen.flashinfer as fi  # noqa: E402
from attention_reference import attention, check, pages, slopes  # noqa: E402

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
LENGTHS = [(3, 17), (0, 5), (1, 64), (5, 0), (7, 33), (4, 2)]  # (rows, keys): empty rows, no keys, more rows than keys


@pytest.fixture(params=DEVICES)
def device(request):
    torch.manual_seed(7)
    return request.param


def workspace(device, size=4096):
    return torch.empty(size, dtype=torch.uint8, device=device)


def indptr_of(lengths, device="cpu"):
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def supported(call):
    """Runs a call; what this device hasn't got yet is skipped by name."""
    try:
        return call()
    except NotImplementedError as error:
        if "on cuda" in str(error):
            pytest.skip(str(error))
        raise


# ------------------------------------------------------------------------------------------------ decode
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dtype,heads,d,page_size", [(torch.float16, (8, 2), 64, 16), (torch.bfloat16, (4, 4), 128, 1),
                                                     (torch.float16, (6, 2), 96, 5)])
@pytest.mark.parametrize("options", [{}, {"window_left": 7}, {"logits_soft_cap": 5.0}, {"pos_encoding_mode": "ROPE_LLAMA"},
                                     {"pos_encoding_mode": "ALIBI"}, {"sm_scale": 0.3}], ids=str)
def test_batch_decode(device, layout, dtype, heads, d, page_size, options):
    (hq, hk), lengths = heads, [1, 0, 70, 16, 300]
    cache, indptr, indices, last, keys, values = pages(lengths, page_size, hk, d, dtype, layout, device=device)
    q = torch.randn(len(lengths), hq, d, device=device).to(dtype)
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device), layout)
    last[1] = 0  # no pages: the length is 0 whatever this says
    supported(lambda: wrapper.plan(indptr, indices, last, hq, hk, d, page_size, q_data_type=dtype, **options))
    out, lse = wrapper.run(q, cache, return_lse=True)
    for r, n in enumerate(lengths):
        want = attention(q[r:r + 1], keys[r], values[r], **reference_options(options, hq))
        if options.get("pos_encoding_mode") == "ALIBI":  # the row counts as 0: key j is biased by slope * j
            want = attention(q[r:r + 1], keys[r], values[r], alibi=slopes(hq))
        check(out[r:r + 1], lse[r:r + 1], *want, dtype)
    assert torch.equal(wrapper.run(q, cache), out)


@pytest.mark.parametrize("split", [{"fixed_split_size": -1}, {"fixed_split_size": 4}, {"disable_split_kv": True}], ids=str)
def test_a_request_s_bits_do_not_depend_on_its_neighbours(device, split):
    dtype, hq, hk, d, page_size = torch.float16, 8, 2, 64, 16
    cache, indptr, indices, last, *_ = pages([900, 3, 70], page_size, hk, d, dtype, device=device)
    q = torch.randn(3, hq, d, device=device).to(dtype)
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device), use_tensor_cores=True)
    supported(lambda: wrapper.plan(indptr, indices, last, hq, hk, d, page_size, q_data_type=dtype, **split))
    together = wrapper.run(q, cache, return_lse=True)
    if split.get("fixed_split_size") == -1:  # engines say "none" so
        return
    wrapper.plan(indptr[:2], indices[:int(indptr[1])], last[:1], hq, hk, d, page_size, q_data_type=dtype, **split)
    for one, many in zip(wrapper.run(q[:1], cache, return_lse=True), together):
        assert torch.equal(one[0], many[0])


def reference_options(options, hq):
    found = {"window_left": options.get("window_left", -1), "soft_cap": options.get("logits_soft_cap", 0.0),
             "sm_scale": options.get("sm_scale")}
    mode = options.get("pos_encoding_mode")
    if mode == "ROPE_LLAMA":
        found["rope"] = (options.get("rope_theta", 1e4), options.get("rope_scale", 1.0))
    if mode == "ALIBI":
        found["alibi"] = slopes(hq)
    return found


def test_decode_of_several_rows(device):
    dtype, hq, hk, d, page_size, n = torch.float16, 8, 2, 64, 4, 3
    cache, indptr, indices, last, keys, values = pages([3, 20, 41], page_size, hk, d, dtype, device=device)
    q = torch.randn(3 * n, hq, d, device=device).to(dtype)
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device), use_tensor_cores=True)
    wrapper.plan(indptr.cpu(), indices, last.cpu(), hq, hk, d, page_size, q_data_type=dtype, q_len_per_req=n)
    out, lse = wrapper.run(q, torch.stack(cache, 1), return_lse=True)  # the five-dimensional form
    for r in range(3):
        check(out[n * r:n * r + n], lse[n * r:n * r + n], *attention(q[n * r:n * r + n], keys[r], values[r], causal=True), dtype)
    with pytest.raises(ValueError, match="q_len_per_req"):
        wrapper.run(q[:3], cache)
    with pytest.raises(ValueError, match="empty KV range"):
        short = torch.tensor([2, 4, 1], dtype=torch.int32)
        wrapper.plan(indptr.cpu(), indices, short, hq, hk, d, page_size, q_data_type=dtype, q_len_per_req=n)
    with pytest.raises(ValueError, match="use_tensor_cores"):
        fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device)).plan(indptr, indices, last, hq, hk, d, page_size, q_len_per_req=2)


def test_decode_options_by_position(device):
    cache, indptr, indices, last, keys, values = pages([9, 20], 4, 2, 64, torch.bfloat16, device=device)
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device))
    q = torch.randn(2, 2, 64, device=device).bfloat16()
    with pytest.warns(DeprecationWarning):
        wrapper.plan(indptr, indices, last, 2, 2, 64, 4, "NONE", 3, None, torch.bfloat16)
    check(wrapper.run(q, cache)[:1], None, attention(q[:1], keys[0], values[0], window_left=3)[0], None, torch.bfloat16)
    with pytest.raises(TypeError, match="multiple values"):
        wrapper.plan(indptr, indices, last, 2, 2, 64, 4, "NONE", pos_encoding_mode="NONE")
    with pytest.raises(TypeError):
        wrapper.plan(indptr, indices, last, 2, 2, 64, 4, *["NONE"] * 17)
    with pytest.raises(TypeError, match="colour"):
        wrapper.plan(indptr, indices, last, 2, 2, 64, 4, colour=1)
    wrapper.plan(indptr, indices, last, 2, 2, 64, 4, data_type=torch.bfloat16)  # fills kv_data_type only: q is float16
    with pytest.raises(ValueError, match="does not match the q_data_type"):
        wrapper.run(q, cache)


def test_decode_graph_mode_replans_in_the_same_memory(device):
    dtype, hq, hk, d, page_size = torch.float16, 8, 2, 64, 8
    buffers = [torch.empty(n, dtype=torch.int32, device=device) for n in (4, 64, 3)]
    wrapper = fi.CUDAGraphBatchDecodeWithPagedKVCacheWrapper(workspace(device), *buffers)
    q = torch.randn(3, hq, d, device=device).to(dtype)
    cache, *_ = pages([150, 150, 150], page_size, hk, d, dtype, device=device)
    cache = tuple(c.nan_to_num() for c in cache)
    memory = None
    for lengths in ([1, 1, 1], [0, 17, 130], [150, 3, 0]):
        counts = [-(-n // page_size) for n in lengths]
        indices = torch.randperm(cache[0].shape[0])[:sum(counts)].int()
        last = torch.tensor([(n - 1) % page_size + 1 for n in lengths]).int()
        wrapper.plan(indptr_of(counts), indices, last, hq, hk, d, page_size, q_data_type=dtype)
        assert memory in (None, list(wrapper._memory._of.values()))
        memory = list(wrapper._memory._of.values())
        assert torch.equal(buffers[1][:len(indices)].cpu(), indices)
        out, lse = wrapper.run(q, cache, return_lse=True)
        at = indptr_of(counts)
        for r, n in enumerate(lengths):
            k, v = (c[indices[at[r]:at[r + 1]].long().to(device)].reshape(-1, hk, d)[:n] for c in cache)
            check(out[r:r + 1], lse[r:r + 1], *attention(q[r:r + 1], k, v), dtype)
    with pytest.raises(ValueError, match="batch size"):
        wrapper.plan(indptr_of([1, 1]), indices[:2], last[:2], hq, hk, d, page_size)
    with pytest.raises(ValueError, match="exceeds"):
        wrapper.plan(indptr_of([65, 0, 0]), torch.zeros(65, dtype=torch.int32), last, hq, hk, d, page_size)
    with pytest.raises(ValueError, match="paged_kv_indices_buffer"):
        fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device), "NHD", True, False, buffers[0], None, buffers[2])


def test_fast_decode_plan_and_the_module_s_own_plan(device):
    dtype, hq, hk, d, page_size = torch.float16, 4, 2, 64, 8
    cache, indptr, indices, last, keys, values = pages([30, 9], page_size, hk, d, dtype, device=device)
    q = torch.randn(2, hq, d, device=device).to(dtype)
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device))
    with pytest.raises(ValueError, match="prior plan"):
        fi.fast_decode_plan(wrapper, indptr, indices, last, hq, hk, d, page_size, q_len_per_req=2)
    wrapper.plan(indptr, indices, last, hq, hk, d, page_size, q_data_type=dtype)
    want = wrapper.run(q, cache)
    wrapper.begin_forward = functools.partial(fi.fast_decode_plan, wrapper)
    assert wrapper.begin_forward.func is fi.fast_decode_plan
    wrapper.begin_forward(indptr, indices, last, hq, hk, d, page_size, q_data_type=dtype, kv_data_type=dtype)
    assert wrapper._paged_kv_indices_buf is indices or device == "cpu"
    assert torch.equal(wrapper.run(q, cache), want)
    empty = torch.empty(0, dtype=dtype)
    info = wrapper._cached_module.plan(
        wrapper._float_workspace_buffer, wrapper._int_workspace_buffer, wrapper._pin_memory_int_workspace_buffer,
        indptr.cpu(), 2, hq, hk, page_size, False, 7, 0.0, d, d, empty, empty)
    wrapper._plan_info = info
    check(wrapper.run(q, cache)[:1], None, attention(q[:1], keys[0], values[0], window_left=7)[0], None, dtype)


def test_options_are_attributes_that_run_honours(device):
    dtype, hq, hk, d, page_size = torch.float16, 4, 2, 64, 8
    cache, indptr, indices, last, keys, values = pages([30], page_size, hk, d, dtype, device=device)
    q = torch.randn(5, hq, d, device=device).to(dtype)
    wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(workspace(device))
    wrapper.plan(indptr_of([5], device), indptr, indices, last, hq, hk, d, page_size, causal=True)
    wrapper._causal, wrapper._window_left, wrapper._sm_scale = False, 4, 0.5
    check(wrapper.run(q, cache), None, attention(q, keys[0], values[0], window_left=4, sm_scale=0.5)[0], None, dtype)
    with pytest.raises(AssertionError):
        wrapper.run(q, cache, window_left=3)
    out = wrapper.forward(q, cache, causal=True)
    check(out, None, attention(q, keys[0], values[0], causal=True)[0], None, dtype)
    saved = wrapper._plan_info
    wrapper.plan(indptr_of([2], device), indptr, indices, last, hq, hk, d, page_size)
    wrapper._plan_info, wrapper._qo_indptr_last, wrapper._causal = saved, 5, True
    assert torch.equal(wrapper.run(q, cache), out)


def test_module_plans_of_engines_with_tensor_cores_and_prefill(device):
    dtype, hq, hk, d, page_size = torch.float16, 4, 2, 64, 8
    lengths, rows = [30, 9], [3, 2]
    cache, indptr, indices, last, keys, values = pages(lengths, page_size, hk, d, dtype, device=device)
    q = torch.randn(5, hq, d, device=device).to(dtype)
    head = lambda w: (w._float_workspace_buffer, w._int_workspace_buffer, w._pin_memory_int_workspace_buffer)  # noqa: E731
    kv_lens, qo, ones = torch.tensor(lengths).int(), indptr_of(rows), torch.arange(3, dtype=torch.int32)
    decode = fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device), use_tensor_cores=True)
    decode.plan(indptr, indices, last, hq, hk, d, page_size, q_data_type=dtype)
    want = decode.run(q[:2], cache)
    decode._plan_info = decode._cached_module.plan(*head(decode), ones, indptr.cpu(), kv_lens, 2, 2, hq, hk, page_size, False,
                                                   d, d, False, -1, -1, False, 0)
    assert torch.equal(decode.run(q[:2], cache), want)
    prefill = fi.BatchPrefillWithPagedKVCacheWrapper(workspace(device))
    prefill.plan(qo, indptr, indices, last, hq, hk, d, page_size, q_data_type=dtype)
    prefill._plan_info = prefill._cached_module.plan(*head(prefill), qo, indptr.cpu(), kv_lens, 5, 2, hq, hk, page_size, False,
                                                     d, d, True, 7)
    ragged = fi.BatchPrefillWithRaggedKVCacheWrapper(workspace(device))
    kv = indptr_of(lengths)
    ragged.plan(qo, kv, hq, hk, d, q_data_type=dtype)
    ragged._plan_info = ragged._cached_module.plan(*head(ragged), qo, kv, kv_lens, 5, 2, hq, hk, 1, False, d, d, True, 7)
    outs = prefill.run(q, cache), ragged.run(q, torch.cat(keys), torch.cat(values))
    for r in range(2):
        part = slice(int(qo[r]), int(qo[r + 1]))
        for out in outs:
            check(out[part], None, attention(q[part], keys[r], values[r], causal=True, window_left=7)[0], None, dtype)


# ------------------------------------------------------------------------------------------------ prefill
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


# ------------------------------------------------------------------------------------------------ single requests
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


# ------------------------------------------------------------------------------------------------ the rest of the family
def test_cascade_of_shared_prefixes(device):
    dtype, hq, hk, d, page_size = torch.float16, 4, 2, 64, 4
    rows, own, shared = [2, 3, 1], [6, 3, 9], 24
    cache, indptr, indices, last, keys, values = pages([shared, *own], page_size, hk, d, dtype, device=device)
    q = torch.randn(sum(rows), hq, d, device=device).to(dtype)
    first, rest = slice(0, int(indptr[1])), slice(int(indptr[1]), None)
    qo = indptr_of(rows, device)
    wrapper = fi.MultiLevelCascadeAttentionWrapper(2, workspace(device))
    wrapper.plan([torch.tensor([0, sum(rows)], dtype=torch.int32, device=device), qo],
                 [indptr[:2], indptr[1:] - indptr[1]], [indices[first], indices[rest]], [last[:1], last[1:]], hq, hk, d,
                 page_size, causal=True)
    out = wrapper.run(q, cache)
    old = fi.BatchPrefillWithSharedPrefixPagedKVCacheWrapper(workspace(device))
    old.begin_forward(qo, indptr[1:] - indptr[1], indices[rest], last[1:], hq, hk, d, page_size)
    again = old.forward(q, keys[0], values[0], cache, causal=True)
    for r in range(3):
        part = slice(int(qo[r]), int(qo[r + 1]))
        want = attention(q[part], torch.cat([keys[0], keys[r + 1]]), torch.cat([values[0], values[r + 1]]), causal=True)[0]
        check(out[part], None, want, None, dtype)
        check(again[part], None, want, None, dtype)
    decode = fi.BatchDecodeWithSharedPrefixPagedKVCacheWrapper(workspace(device))
    decode.begin_forward(indptr[1:] - indptr[1], indices[rest], last[1:], hq, hk, d, page_size)
    out = decode.forward(q[:3], keys[0], values[0], cache)
    for r in range(3):
        check(out[r:r + 1], None, attention(q[r:r + 1], torch.cat([keys[0], keys[r + 1]]), torch.cat([values[0], values[r + 1]]))[0], None, dtype)


@pytest.mark.parametrize("causal, rows, where, one_call", [
    (False, [1, 1, 1], "device", True), (True, [2, 3, 1], "cpu", True), (True, [2, 4, 1], "cpu", False),  # a row without a key of its own
    (True, [2, 3, 1], "device", False)])
def test_a_cascade_is_one_call_where_its_levels_are_a_chain(device, causal, rows, where, one_call):
    dtype, hq, hk, d, page_size = torch.float16, 4, 2, 64, 4
    own, shared = [6, 3, 9], [24, 8]  # two prefixes: of all requests, and of the first two
    cache, indptr, indices, last, keys, values = pages([*shared, *own, 4], page_size, hk, d, dtype, device=device)
    place = device if where == "device" else "cpu"
    indptr, indices, last = (x.to(place) for x in (indptr, indices, last))
    n = sum(rows)
    q, qo = torch.randn(n, hq, d, device=device).to(dtype), indptr_of(rows, place)
    second = torch.tensor([0, rows[0] + rows[1], n], dtype=torch.int32, device=place)
    ids = [indices[:int(indptr[1])], torch.cat([indices[int(indptr[1]):int(indptr[2])], indices[int(indptr[5]):]]),
           indices[int(indptr[2]):int(indptr[5])]]
    middle = torch.tensor([0, 2, 3], dtype=torch.int32, device=place)
    wrapper = fi.MultiLevelCascadeAttentionWrapper(3, workspace(device))
    wrapper.plan([torch.tensor([0, n], dtype=torch.int32, device=place), second, qo],
                 [indptr[:2], middle, indptr[2:6] - indptr[2]], ids, [last[:1], torch.cat([last[1:2], last[5:]]), last[2:5]], hq, hk, d,
                 page_size, causal=causal)
    assert (wrapper._chain is not None) == (one_call or (device == "cpu" and where == "device"))
    out, at = wrapper.run(q, cache), qo.tolist()
    for r in range(3):
        part, seen = slice(at[r], at[r + 1]), [0, 1 if r < 2 else 5, 2 + r]
        want = attention(q[part], torch.cat([keys[i] for i in seen]), torch.cat([values[i] for i in seen]),
                         causal=causal)[0]
        if causal and rows[r] > own[r]:  # causality among its own keys only
            mask = torch.ones(rows[r], sum(len(keys[i]) for i in seen), dtype=torch.bool)
            mask[:, -own[r]:] = torch.arange(own[r])[None] <= torch.arange(rows[r])[:, None] + own[r] - rows[r]
            want = attention(q[part], torch.cat([keys[i] for i in seen]), torch.cat([values[i] for i in seen]), mask=mask)[0]
        check(out[part], None, want, None, dtype)


def test_batch_attention(device):
    dtype, hq, hk, d, page_size = torch.bfloat16, 8, 2, 64, 8
    rows, lengths = [1, 9, 1, 4], [30, 9, 1, 70]
    cache, indptr, indices, last, keys, values = pages(lengths, page_size, hk, d, dtype, device=device)
    wrapper = fi.BatchAttention("NHD", device)
    qo = indptr_of(rows)
    q = torch.randn(sum(rows), hq, d, device=device).to(dtype)
    wrapper.plan(qo, indptr.cpu(), indices, torch.tensor(lengths, dtype=torch.int32), hq, hk, d, d, page_size, causal=True)
    out, lse = wrapper.run(q, cache)
    for r in range(4):
        part = slice(int(qo[r]), int(qo[r + 1]))
        check(out[part], lse[part], *attention(q[part], keys[r], values[r], causal=True), dtype)
    with pytest.raises(ValueError, match="plan"):
        wrapper.run(q, cache, logits_soft_cap=3.0)


def test_sinks(device):
    dtype, hq, hk, d, page_size = torch.bfloat16, 4, 2, 64, 8
    rows, lengths = [3, 1, 2], [30, 9, 0]
    cache, indptr, indices, last, keys, values = pages(lengths, page_size, hk, d, dtype, device=device)
    q = torch.randn(sum(rows), hq, d, device=device).to(dtype)
    sink = torch.randn(hq, device=device) * 3
    wrapper = fi.BatchAttentionWithAttentionSinkWrapper(workspace(device), window_left=7, head_dim_qk=d, head_dim_vo=d)
    qo = indptr_of(rows)
    wrapper.plan(qo, indptr, indices, last, hq, hk, d, page_size, causal=True, window_left=7, q_data_type=dtype, kv_data_type=dtype)
    out, lse = supported(lambda: wrapper.run(q, cache, sink, 0.2, return_lse=True))
    for r in range(3):
        part = slice(int(qo[r]), int(qo[r + 1]))
        want, want_lse = attention(q[part], keys[r], values[r], causal=True, window_left=7, sm_scale=0.2, sinks=sink)
        if lengths[r] == 0:  # a row that sees no key has no softmax, sink or not
            want_lse = torch.full_like(want_lse, -math.inf)
        check(out[part], lse[part], want, want_lse, dtype)
    decode = fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device))
    decode.plan(indptr, indices, last, hq, hk, d, page_size, q_data_type=dtype)
    check(decode.run(q[:3], cache, sinks=sink)[:1], None, attention(q[:1], keys[0], values[0], sinks=sink)[0], None, dtype)


def test_pod(device):
    dtype, hq, hk, d, page_size = torch.float16, 4, 2, 64, 8
    cache, indptr, indices, last, keys, values = pages([30, 9], page_size, hk, d, dtype, device=device)
    q_d, q_p = (torch.randn(n, hq, d, device=device).to(dtype) for n in (2, 6))
    k, v = (torch.randn(11, hk, d, device=device).to(dtype) for _ in range(2))
    wrapper = fi.PODWithPagedKVCacheWrapper(workspace(device))
    wrapper.plan(indptr, indices, last, hq, hk, d, page_size, q_data_type=dtype)
    out_p, out_d = wrapper.run(q_p, k, v, q_d, cache, causal_p=True)
    check(out_p, None, attention(q_p, k, v, causal=True)[0], None, dtype)
    batch = fi.BatchPODWithPagedKVCacheWrapper(workspace(device))
    qo = indptr_of([4, 2], device)
    batch.plan(qo, indptr, indices, last, indptr_of([1, 1], device), indptr, indices, last, hq, hk, d, page_size, q_data_type=dtype)
    (p, p_lse), (o, o_lse) = batch.run(q_p, cache, q_d, cache, causal_p=True, return_lse=True)
    for r in range(2):
        check(out_d[r:r + 1], None, attention(q_d[r:r + 1], keys[r], values[r])[0], None, dtype)
        check(o[r:r + 1], o_lse[r:r + 1], *attention(q_d[r:r + 1], keys[r], values[r]), dtype)
        part = slice(int(qo[r]), int(qo[r + 1]))
        check(p[part], p_lse[part], *attention(q_p[part], keys[r], values[r], causal=True), dtype)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("M,N,R,C", [(16, 24, 4, 8), (7, 12, 3, 1), (9, 32, 1, 16)])
def test_block_sparse(device, masked, M, N, R, C):
    hq, hk, d = 4, 2, 64
    blocks = torch.rand(-(-M // R), N // C) < 0.4
    blocks[0] = False  # a block row that sees nothing
    indptr = indptr_of(blocks.sum(1).tolist())
    indices = torch.cat([b.nonzero()[:, 0] for b in blocks]).int()
    inner = torch.rand(len(indices), R, C) < 0.6 if masked else torch.ones(len(indices), R, C, dtype=torch.bool)
    dense = torch.zeros(M + R, N, dtype=torch.bool)
    for row in range(len(blocks)):
        for i in range(indptr[row], indptr[row + 1]):
            dense[row * R:row * R + R, indices[i] * C:indices[i] * C + C] = inner[i]
    q = torch.randn(M, hq, d, device=device).half()
    k, v = (torch.randn(N, hk, d, device=device).half() for _ in range(2))
    wrapper = fi.BlockSparseAttentionWrapper(workspace(device))
    supported(lambda: wrapper.plan(indptr.to(device), indices.to(device), M, N, R, C, hq, hk, d, mask=inner.to(device) if masked else None))
    out, lse = wrapper.run(q, k, v, return_lse=True)
    check(out, lse, *attention(q, k, v, mask=dense[:M]), torch.float16)
    if not device == "cuda":
        with pytest.raises(ValueError, match="indices"):
            wrapper.plan(indptr, torch.full_like(indices, N // C), M, N, R, C, hq, hk, d)


def test_variable_block_sparse(device):
    hq, hk, d, qo_len, kv_len = 4, 2, 64, 17, 23
    rows = torch.tensor([[5, 8, 4], [1, 15, 1]])
    columns = torch.tensor([[10, 3, 6, 4], [23, 0, 0, 0]])
    blocks = torch.rand(hk, 3, 4) < 0.5
    q = torch.randn(hq, qo_len, d, device=device).half()
    k, v = (torch.randn(hk, kv_len, d, device=device).half() for _ in range(2))
    wrapper = fi.VariableBlockSparseAttentionWrapper(workspace(device))
    wrapper.plan(blocks.to(device), rows.to(device), columns.to(device), hq, hk, d)
    out, lse = wrapper.run(q, k, v, return_lse=True)
    for h in range(hk):
        dense = blocks[h].repeat_interleave(rows[h], 0).repeat_interleave(columns[h], 1)
        group = slice(2 * h, 2 * h + 2)
        want, want_lse = attention(q[group].transpose(0, 1), k[h][:, None], v[h][:, None], mask=dense)
        check(out[group].transpose(0, 1), lse[group].t(), want, want_lse, torch.float16)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_plan_less_entries(device, layout):
    dtype, hq, hk, d, page_size = torch.bfloat16, 8, 2, 64, 16
    lengths, n = [40, 5, 33], 3
    cache, indptr, indices, last, keys, values = pages(lengths, page_size, hk, d, dtype, layout, device=device)
    table = torch.full((3, 5), -1, dtype=torch.int32, device=device)  # entries past a length are never read
    for r in range(3):
        own = indices[indptr[r]:indptr[r + 1]]
        table[r, :len(own)] = own
    lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    q = torch.randn(3 * n, hq, d, device=device).to(dtype)
    ws = workspace(device)
    out = fi.decode.trtllm_batch_decode_with_kv_cache(q, cache, ws, table, lens, 40, 0.2, 0.5, kv_layout=layout, q_len_per_req=n)
    ragged = fi.prefill.trtllm_batch_context_with_kv_cache(
        q, cache, ws, table, lens, n, 40, 0.2, 0.5, 3, indptr_of([n] * 3, device), indptr, kv_layout=layout)
    single = fi.decode.xqa_batch_decode_with_kv_cache(q[:3], cache, ws, table, lens, 40, 0.2, 0.5, window_left=7, kv_layout=layout)
    tree = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
    words = torch.zeros(3, n, 2, dtype=torch.int16)
    words[:, :, 0] = (tree.int() << torch.arange(n)).sum(1).to(torch.int16)
    masked = supported(lambda: fi.decode.xqa_batch_decode_with_kv_cache(
        q, cache, ws, table, lens, 40, 0.2, 1.0, kv_layout=layout, q_len_per_req=n, mask=words.to(device)))
    to = torch.empty(3, 1, hq, d, device=device, dtype=dtype)
    fi.xqa(q[:3].unsqueeze(1), *cache, table, lens[:, None], to, ws, ws, hk, page_size, q_scale=1.5, sliding_win_size=4, kv_layout=layout)
    for r in range(3):
        part = slice(n * r, n * r + n)
        want = 0.5 * attention(q[part], keys[r], values[r], causal=True, sm_scale=0.2)[0]
        check(out[part], None, want, None, dtype)
        check(ragged[part], None, want, None, dtype)
        check(single[r:r + 1], None, 0.5 * attention(q[r:r + 1], keys[r], values[r], window_left=7, sm_scale=0.2)[0], None, dtype)
        mask = torch.cat([torch.ones(n, lengths[r] - n, dtype=torch.bool), tree], 1)
        check(masked[part], None, attention(q[part], keys[r], values[r], mask=mask, sm_scale=0.2)[0], None, dtype)
        check(to[r], None, attention(q[r:r + 1], keys[r], values[r], window_left=3, sm_scale=1.5 / 8)[0], None, dtype)


# ------------------------------------------------------------------------------------------------ refusals
def test_refusals(device):
    cache, indptr, indices, last, *_ = pages([9], 4, 2, 64, torch.float16, device=device)
    q = torch.randn(1, 2, 64, device=device).half()
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device))
    with pytest.raises(RuntimeError, match="plan"):
        wrapper.run(q, cache)
    wrapper.plan(indptr, indices, last, 2, 2, 64, 4)
    with pytest.raises(KeyError, match="paged_kv_cache"):
        wrapper.run(q, list(cache))
    for name, bad in (("out", q[:, :1]), ("out", q.float()), ("lse", torch.empty(1, 2, 1, device=device)),
                      ("lse", torch.empty(1, 2, device=device).half())):
        with pytest.raises(ValueError, match=name):
            wrapper.run(q, cache, **{name: bad})
    with pytest.raises(KeyError, match="kv_layout"):
        fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device), "DNH")
    with pytest.raises(KeyError, match="pos_encoding_mode"):
        wrapper.plan(indptr, indices, last, 2, 2, 64, 4, pos_encoding_mode="SINE")
    with pytest.raises(NotImplementedError, match="does not offer"):
        fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device), backend="trtllm-gen")
    with pytest.raises(NotImplementedError, match="NVFP4"):
        wrapper.plan(indptr, indices, last, 2, 2, 64, 4, kv_data_type=torch.uint8)
    if hasattr(torch, "float8_e4m3fn"):
        with pytest.raises(NotImplementedError, match="fp8"):
            wrapper.plan(indptr, indices, last, 2, 2, 64, 4, kv_data_type="float8_e4m3fn")
    with pytest.raises(ValueError, match="float_workspace_buffer must be 16-byte aligned"):
        fi.BatchPrefillWithPagedKVCacheWrapper(workspace(device)[1:])
    with pytest.raises(ValueError, match="int_workspace_buffer must be 16-byte aligned"):
        wrapper.reset_workspace_buffer(workspace(device), workspace(device)[1:])
    assert all(n > 0 for n in wrapper.workspace_size(indptr, indices, last, 2, 2, 64, 4))


# ------------------------------------------------------------------------------------------------ CUDA only
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
def test_plan_and_run_never_wait_for_the_device():
    device, dtype, hq, hk, d, page_size = "cuda", torch.float16, 8, 2, 64, 8
    cache, indptr, indices, last, *_ = pages([30, 9], page_size, hk, d, dtype, device=device)
    q = torch.randn(2, hq, d, device=device).to(dtype)
    decode = fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device))
    prefill = fi.BatchPrefillWithPagedKVCacheWrapper(workspace(device))
    qo = indptr_of([1, 1], device)
    pinned = last.cpu().pin_memory()

    def step():
        decode.plan(indptr, indices, last, hq, hk, d, page_size, q_data_type=dtype)
        decode.run(q, cache, return_lse=True)
        decode.plan(indptr, indices, pinned, hq, hk, d, page_size, q_data_type=dtype)
        prefill.plan(qo, indptr, indices, last, hq, hk, d, page_size, causal=True, q_data_type=dtype)
        prefill.run(q, cache, return_lse=True)

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cuda
@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_a_captured_graph_follows_the_plan(kind):
    device, dtype, hq, hk, d, page_size, most = "cuda", torch.bfloat16, 8, 2, 128, 16, 400
    cache, *_ = pages([most] * 3, page_size, hk, d, dtype, device=device)
    cache = tuple(c.nan_to_num() for c in cache)
    n = 1 if kind == "decode" else 2
    q = torch.randn(3 * n, hq, d, device=device).to(dtype)
    buffers = [torch.empty(size, dtype=torch.int32, device=device) for size in (4, 80, 3)]
    qo = torch.arange(4, dtype=torch.int32) * n
    if kind == "decode":
        wrapper = fi.CUDAGraphBatchDecodeWithPagedKVCacheWrapper(workspace(device), *buffers)
        plan = lambda *table: wrapper.plan(*table, hq, hk, d, page_size, q_data_type=dtype)  # noqa: E731
    else:
        wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(workspace(device), "NHD", True, torch.empty_like(buffers[0]), *buffers)
        plan = lambda *table: wrapper.plan(qo, *table, hq, hk, d, page_size, q_data_type=dtype, causal=True)  # noqa: E731

    def table(lengths):
        counts = [-(-x // page_size) for x in lengths]
        return indptr_of(counts), torch.randperm(cache[0].shape[0])[:sum(counts)].int(), torch.tensor(
            [(x - 1) % page_size + 1 for x in lengths]).int()

    plan(*table([1, 1, 1]))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        wrapper.run(q, cache, return_lse=True)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = wrapper.run(q, cache, return_lse=True)
    for lengths in ([most, 2, 77], [3, most, 0], [16, 17, 400]):
        indptr, indices, last = table(lengths)
        if lengths[0] == 3:  # without a plan: the graph reads the buffers
            for buffer, given in zip(buffers, (indptr, indices, last)):
                buffer[:given.numel()].copy_(given)
        else:
            plan(indptr, indices, last)
        graph.replay()
        for r, length in enumerate(lengths):
            k, v = (c[indices[indptr[r]:indptr[r + 1]].long().to(device)].reshape(-1, hk, d)[:length] for c in cache)
            part = slice(n * r, n * r + n)
            check(out[part], lse[part], *attention(q[part], k, v, causal=n > 1), dtype)
