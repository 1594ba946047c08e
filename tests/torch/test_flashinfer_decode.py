"""fulmen.flashinfer's decode wrappers, and plans of engines, against plain float64 attention: on each device that is here."""
import functools

import pytest

torch = pytest.importorskip("torch")

import fulmen.flashinfer as fi  # noqa: E402
from attention_reference import attention, check, pages, slopes  # noqa: E402
from flashinfer_calls import indptr_of, reference_options, supported, workspace  # noqa: E402


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


@pytest.mark.parametrize("where", ["host", "device", "indices on the device", "64 bits apart"])
def test_steps_of_one_wrapper_follow_their_lengths(device, where):
    """Plans that ask for the same, of the same and of other sizes, with runs of the planned kind and of another between."""
    dtype, hq, hk, d, page_size = torch.float16, 8, 2, 64, 16
    cache, indptr, indices, _, keys, values = pages([300] * 3, page_size, hk, d, dtype, device=device)
    table, sinks = indices[:int(indptr[-1])].view(3, -1), torch.randn(hq, device=device)
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device))
    for step, lengths in enumerate([(300, 5, 40), (290, 7, 33), (33, 290, 7), (3, 3, 3), (300, 300, 300), (299, 1, 48), (1, 48, 300)]):
        counts = [-(-n // page_size) for n in lengths]
        lists = [torch.tensor([0, *counts]).cumsum(0).int(), torch.cat([table[r, :c] for r, c in enumerate(counts)]).cpu(),
                 torch.tensor([n - (c - 1) * page_size if c else 0 for n, c in zip(lengths, counts)], dtype=torch.int32)]
        if where == "64 bits apart":
            lists = [x.long().repeat_interleave(3)[::3] for x in lists]
        lists = [x.to(device) if where == "device" or (where != "host" and i == 1) else x for i, x in enumerate(lists)]
        wrapper.plan(*lists, hq, hk, d, page_size, q_data_type=dtype)
        for x in lists:
            if where == "host":
                x.fill_(1 << 20)  # the caller's memory is his again
        q = torch.randn(3, hq, d, device=device).to(dtype)
        for given in ([sinks, None, None] if step % 2 else [None, None, sinks]):
            out, lse = wrapper.run(q, cache, return_lse=True, sinks=given)
            for r, n in enumerate(lengths):
                check(out[r:r + 1], lse[r:r + 1], *attention(q[r:r + 1], keys[r][:n], values[r][:n], sinks=given), dtype)


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


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_every_run_after_a_plan_is_as_the_first(device, layout):
    """Calls that differ in tensors alone take a shorter way; so each kind of call comes twice, among others."""
    dtype, hq, hk, d, page_size = torch.float16, 4, 2, 64, 8
    cache, indptr, indices, last, *_ = pages([30, 9], page_size, hk, d, dtype, layout, device=device)
    other = tuple(torch.randn_like(x) for x in cache)
    whole = torch.stack(other, 1)
    q, sinks = torch.randn(2, hq, d, device=device).to(dtype), [torch.randn(hq, device=device) for _ in range(2)]
    wide = torch.randn(2, hq, d + 8, device=device).to(dtype)[:, :, :d]

    def planned():
        wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(workspace(device), layout)
        wrapper.plan(indptr, indices, last, hq, hk, d, page_size, q_data_type=dtype)
        return wrapper

    def into(make):
        return lambda w, **more: w.run(q, cache, out=make(), return_lse=True, **more)

    calls = [lambda w: w.run(q, cache), lambda w: w.run(q, other), lambda w: w.run(q * 2, whole), lambda w: w.run(wide, cache),
             lambda w: w.run(q.transpose(0, 1).contiguous().transpose(0, 1), whole),
             lambda w: w.run(q, cache, v_scale=0.5), lambda w: w.run(q, cache, v_scale=0.25, return_lse=True),
             lambda w: w.run(q, cache, v_scale=0), lambda w: w.run(q, cache, q_scale=2.0, k_scale=0.5),
             lambda w: w.run(q, cache, k_scale=torch.tensor(0.5)), lambda w: w.run(q, cache, v_scale=torch.tensor(0.5, device=device)),
             lambda w: w.run(q, cache, sinks=sinks[0]), lambda w: w.run(q, other, sinks=sinks[1], return_lse=True),
             into(lambda: torch.empty_like(q)), into(lambda: torch.empty(2, hq, 2 * d, device=device, dtype=dtype)[:, :, ::2]),
             into(lambda: torch.empty(hq, 2, d, device=device, dtype=dtype).transpose(0, 1))]
    want = [call(planned()) for call in calls]
    wrapper = planned()
    for i in [i for n in range(len(calls)) for i in (n, n, -n)]:
        for a, b in zip(*([x] if isinstance(x, torch.Tensor) else x for x in (calls[i](wrapper), want[i]))):
            assert torch.equal(a, b), i
    wrapper._window_left = 3
    assert not torch.equal(wrapper.run(q, cache), want[0])
    wrapper._window_left = -1
    assert torch.equal(wrapper.run(q, cache), want[0]) and torch.equal(wrapper.run(q, cache), want[0])
    with pytest.raises(ValueError, match="rows"):
        wrapper.run(q[:1], cache)
    with pytest.raises(ValueError, match="dtype of q"):
        wrapper.run(q.bfloat16(), cache)
    with pytest.raises(AssertionError, match="window_left"):
        wrapper.run(q, cache, window_left=3)


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
    for _ in range(2):  # plans that ask for the same, one of them after attributes were set
        wrapper.plan(indptr_of([5], device), indptr, indices, last, hq, hk, d, page_size, causal=True)
        check(wrapper.run(q, cache), None, attention(q, keys[0], values[0], causal=True)[0], None, dtype)
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
