"""fulmen.flashinfer's wrappers on a GPU: nothing waits for it, and graphs of theirs follow the plan."""
import pytest

torch = pytest.importorskip("torch")

import fulmen.flashinfer as fi  # noqa: E402
from attention_reference import attention, check, pages  # noqa: E402
from flashinfer_calls import indptr_of, workspace  # noqa: E402

if not torch.cuda.is_available():
    pytest.skip("graphs are a GPU's", allow_module_level=True)


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
