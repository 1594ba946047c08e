"""Cascades, BatchAttention, sinks, POD, block-sparse and plan-less calls against plain float64 attention."""
import math

import pytest

torch = pytest.importorskip("torch")

import fulmen.flashinfer as fi  # noqa: E402
from attention_reference import attention, check, pages  # noqa: E402
from flashinfer_calls import indptr_of, supported, workspace  # noqa: E402


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
