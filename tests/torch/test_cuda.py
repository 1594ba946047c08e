"""The own API on a GPU: torch's graphs and streams, tensors freed while in use, threads, several contexts, numpy's answers."""
import gc
import importlib.util
import os
import pathlib
import subprocess
import sys
import threading
import weakref

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("a GPU's graphs, streams and memory", allow_module_level=True)

import fulmen  # noqa: E402
from attention_reference import attention  # noqa: E402

DTYPE, PAGE, HEADS, KV_HEADS, DIM = torch.float16, 16, 8, 2, 64


def ints(*values):
    return torch.tensor(values, dtype=torch.int32, device="cuda")


class Batch:
    """Requests of given lengths with one new row each, and a handle for them."""

    def __init__(self, lens, context=None):
        n, pages = len(lens), -(-max(lens) // PAGE)
        self.att = fulmen.Attention(context or fulmen.Context("cuda"), [fulmen.Group(HEADS, KV_HEADS)], dtype="f16", head_dim=DIM,
                                    max_requests=n, max_rows=n, max_kv_len=pages * PAGE)
        self.rows, self.lens = torch.arange(n + 1, dtype=torch.int32, device="cuda"), ints(*lens)
        self.table = torch.randperm(n * pages, device="cuda").to(torch.int32).view(n, pages)
        self.q = torch.randn(n, HEADS, DIM, device="cuda", dtype=DTYPE)
        self.k, self.v = (torch.randn(n * pages, PAGE, KV_HEADS, DIM, device="cuda", dtype=DTYPE) for _ in range(2))

    def step(self):
        self.att.plan(self.rows, self.lens)
        return self.att.run(self.q, self.k, self.v, self.table)

    def exact(self):
        result = []
        for r, n in enumerate(self.lens.tolist()):
            k, v = (x[self.table[r].long()].flatten(0, 1)[:n] for x in (self.k, self.v))
            result.append(attention(self.q[r:r + 1], k, v)[0])
        return torch.cat(result)


def close(a, b):
    torch.testing.assert_close(a.double().cpu(), b.double().cpu(), rtol=3e-3, atol=3e-3)


def test_a_captured_step_follows_lengths_tables_and_contents():
    batch, weight = Batch([3, 40, 17, 90]), torch.randn(DIM, device="cuda", dtype=DTYPE)
    new = [torch.randn(4, KV_HEADS, DIM, device="cuda", dtype=DTYPE) for _ in range(2)]
    logits = torch.randn(4, 300, device="cuda")

    def step():
        q = fulmen.rms_norm(batch.q, weight)
        fulmen.append_kv(new[0], new[1], batch.k, batch.v, qo_indptr=batch.rows, kv_len=batch.lens, table=batch.table)
        batch.att.plan(batch.rows, batch.lens)
        return batch.att.run(q, batch.k, batch.v, batch.table), fulmen.sample(logits, top_k=20, top_p=0.9, seed=5)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # kernels are compiled and loaded before a capture
        step()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for lens in ([3, 40, 17, 90], [96, 1, 2, 50], [1, 1, 1, 1]):
        batch.lens.copy_(ints(*lens))
        batch.table.copy_(batch.table.flatten()[torch.randperm(batch.table.numel(), device="cuda")].view_as(batch.table))
        for x in (batch.q, batch.k, batch.v, *new, logits):
            x.normal_()
        before = batch.k.clone(), batch.v.clone()
        graph.replay()
        got, after = [x.clone() for x in captured], (batch.k.clone(), batch.v.clone())
        batch.k.copy_(before[0]), batch.v.copy_(before[1])
        for a, b in zip((*got, *after), (*step(), batch.k, batch.v)):
            assert torch.equal(a, b), lens


def test_first_use_inside_a_capture():
    """Of a kernel that was prepared; one that wasn't is refused by name, and the capture can be given up."""
    code = """
import torch, fulmen
x = torch.randn(3, 712, device="cuda", dtype=torch.bfloat16)
w = torch.ones(712, device="cuda", dtype=torch.bfloat16)
context = fulmen.Context("cuda")
graph = torch.cuda.CUDAGraph()
try:
    with torch.cuda.graph(graph):
        fulmen.rms_norm(x, w, context=context)
    raise SystemExit("not refused")
except fulmen.FulmenError as error:
    assert "rms_norm is not prepared" in str(error), error
fulmen.prepare(context, [{"op": "rms_norm", "dtype": "bf16"}], progress=False)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    y = fulmen.rms_norm(x, w, context=context)
for _ in range(2):
    x.normal_()
    graph.replay()
    assert torch.equal(y, fulmen.rms_norm(x, w, context=context))
print("same")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout == "same\n", run.stderr


def test_work_goes_to_the_current_stream():
    """Behind a long wait on a side stream; a call on another stream would read the old numbers."""
    x, w = torch.zeros(64, 512, device="cuda"), torch.ones(512, device="cuda")
    fulmen.rms_norm(x, w)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    fill = torch.randn_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x.copy_(fill)
        y = fulmen.rms_norm(x, w)
    assert not side.query(), "the call waited"
    side.synchronize()
    assert torch.equal(y, fulmen.rms_norm(fill, w))


def test_a_given_stream_is_used():
    batch = Batch([5, 60])
    want = batch.step().clone()
    torch.cuda.synchronize()
    side, out = torch.cuda.Stream(), torch.zeros_like(want)
    kept = batch.q.clone()
    batch.q.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        batch.q.copy_(kept)
    batch.att.plan(batch.rows, batch.lens, stream=side.cuda_stream)
    batch.att.run(batch.q, batch.k, batch.v, batch.table, out=out, stream=side.cuda_stream)
    assert not side.query()
    side.synchronize()
    assert torch.equal(out, want)


def test_steps_of_many_streams_and_threads():
    context = fulmen.Context("cuda")
    wrong = []

    def work(seed):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            batch = Batch([1 + 7 * seed, 33, 90], context if seed % 2 else None)
            want = batch.step().clone()
            for _ in range(20):
                if not torch.equal(batch.step(), want):
                    wrong.append(seed)
        stream.synchronize()
        try:
            close(want, batch.exact())
        except AssertionError as error:
            wrong.append(error)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong, wrong[0]


def test_tensors_freed_while_in_use():
    """What a call still works on may be let go: torch's allocator orders reuse by the stream that the call ran on."""
    batch = Batch([50, 90])
    want = batch.step().clone()
    for _ in range(30):
        torch.cuda._sleep(2_000_000)
        q, k, v, table = (x.clone() for x in (batch.q, batch.k, batch.v, batch.table))
        out = batch.att.run(q, k, v, table)
        del q, k, v, table
        junk = [torch.full_like(x, 7) for x in (batch.k, batch.v, batch.q)]
        assert torch.equal(out, want)
        del junk


def test_handles_freed_while_in_use():
    for _ in range(10):
        batch = Batch([50, 90])
        torch.cuda._sleep(2_000_000)
        out, exact = batch.step(), None
        exact = batch.exact()
        del batch
        gc.collect()
        close(out, exact)


def test_arguments_are_let_go():
    x = torch.randn(4, 64, device="cuda")
    gone = weakref.ref(x)
    fulmen.rms_norm(x, torch.ones(64, device="cuda"))
    del x
    assert gone() is None


def test_nothing_leaks():
    """Other processes share the card's free memory: what they take and give changes a few rounds, a leak changes every one."""
    def work(n):
        for _ in range(n):
            batch = Batch([50, 90])
            batch.step()
            with pytest.raises(fulmen.InvalidArgument):
                fulmen.rms_norm(batch.q, torch.ones(3, device="cuda", dtype=DTYPE))
        del batch
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    work(5)
    rounds = [work(20) for _ in range(8)]
    assert len({held for held, _ in rounds}) == 1, "bytes of torch's"
    taken = sorted(before - after for (_, before), (_, after) in zip(rounds, rounds[1:]))
    assert taken[len(taken) // 2] < 2 << 20, f"bytes of GPU memory for 20 contexts and handles: {taken}"


def test_host_tensors_among_device_tensors_are_named():
    x, w = torch.randn(4, 64, device="cuda"), torch.ones(64)
    with pytest.raises(fulmen.InvalidArgument, match="weight"):
        fulmen.rms_norm(x, w)
    batch = Batch([5])
    batch.att.plan(batch.rows, batch.lens)
    with pytest.raises(fulmen.InvalidArgument, match=r"\bk\b"):
        batch.att.run(batch.q, batch.k.cpu(), batch.v, batch.table)


def test_lengths_may_lie_on_the_host():
    batch = Batch([5, 60, 33])
    want = batch.step().clone()
    batch.att.plan(batch.rows.cpu(), batch.lens.cpu())
    assert torch.equal(batch.att.run(batch.q, batch.k, batch.v, batch.table), want)


def test_a_sealed_context_compiles_nothing_more(tmp_path):
    context = fulmen.Context("cuda", cache_dir=str(tmp_path))  # an empty one: what lies on disk may be loaded
    x, w = torch.randn(4, 64, device="cuda"), torch.ones(64, device="cuda")
    want = fulmen.rms_norm(x, w, context=context)
    context.seal()
    assert torch.equal(fulmen.rms_norm(x, w, context=context), want)
    with pytest.raises(fulmen.FulmenError, match="(?i)seal"):
        fulmen.softmax(x, context=context)


def test_after_a_fork_the_child_is_refused_and_the_parent_goes_on():
    code = """
import os, torch, fulmen
x, w = torch.randn(4, 64, device="cuda"), torch.ones(64, device="cuda")
want = fulmen.rms_norm(x, w)
torch.cuda.synchronize()
child = os.fork()
if child == 0:
    try:
        fulmen.rms_norm(x, w, out=want)
    except fulmen.FulmenError as error:
        os._exit(0 if "fork" in str(error) else 3)
    os._exit(4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(fulmen.rms_norm(x, w), want)
print("same")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout == "same\n", run.stderr


def test_the_interpreter_exits_with_work_in_flight():
    code = """
import torch, fulmen
x, w = torch.randn(64, 512, device="cuda"), torch.ones(512, device="cuda")
keep = fulmen.Context("cuda"), fulmen.Attention(fulmen.Context("cuda"), [fulmen.Group(1, 1)], dtype="f16", head_dim=64,
                                                max_requests=1, max_rows=1, max_kv_len=1)
fulmen.rms_norm(x, w)
torch.cuda._sleep(20_000_000)
fulmen.rms_norm(x, w, context=keep[0])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                         env={**os.environ, "PYTHONFAULTHANDLER": "1"})
    assert run.returncode == 0, run.stderr


def test_continuous_batching_example():
    """Requests served together get the tokens that each gets alone."""
    path = pathlib.Path(__file__).resolve().parents[2] / "examples/continuous_batching.py"
    spec = importlib.util.spec_from_file_location("continuous_batching", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    together = example.main("cuda")
    assert len({tuple(r.tokens[r.prompt_len:]) for r in together}) > 4
    for i, request in enumerate(together):
        server = example.Server("cuda")
        alone = server.submit(example.Request(range(1, 4 + 5 * i), 6 + i, seed=i, temperature=0.8 * (i % 2)))
        while server.step():
            pass
        assert alone.tokens == request.tokens, f"request {i}"
