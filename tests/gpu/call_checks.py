"""The call itself: graphs, captures, threads, forks, host tensors."""
import ctypes
import os
import random
import subprocess
import sys
import tempfile
import threading

import torch
from attention_checks import Case
from harness import BF16, DEV, capi, check, expect, i32, rnd, same_bits, stream


@check("graph: one capture of plan and 4 layers, 1000 random batches", cases={"decode": {}, "invariant": dict(invariant=1)})
def attention_graph(env, invariant=0):
    torch.manual_seed(3)
    r, hq, hk, d, page, max_req, max_kv = random.Random(5), 8, 2, 128, 16, 24, 6000
    pool = 4000
    caches = [(rnd(pool, page, hk, d), rnd(pool, page, hk, d)) for _ in range(4)]
    table = torch.randint(0, pool, (max_req, max_kv // page + 1), device=DEV, dtype=torch.int32)
    c = Case([1] * max_req, [max_kv] * 1 + [1] * (max_req - 1), hq=hq, hk=hk, d=d, invariant=invariant, max_kv=max_kv)
    q = rnd(max_req, hq, d)
    out = [torch.zeros(max_req, hq, d, device=DEV, dtype=BF16) for _ in range(4)]
    c.q, c.kv_table = q, dict(table=table)
    handle = c.handle(env)
    lengths = c.lengths(env)
    layers = []
    for (k, v), o in zip(caches, out):
        layers.append(env.f.new("attention_tensors", page_size=page, q=q, k=k, v=v, o=o, kv=[dict(table=table)]))

    def step():
        handle.plan(lengths, stream())
        for layer in layers:
            handle.run(layer, stream())
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for i in range(1000):
        kind = r.choice(["uniform", "zeros", "one long", "random", "empty"])
        n = r.randint(1, max_req)
        lens = {"uniform": [r.randint(1, 500)] * n, "zeros": [r.choice([0, r.randint(1, 300)]) for _ in range(n)],
                "one long": [max_kv] + [r.randint(1, 64) for _ in range(n - 1)],
                "random": [r.randint(0, max_kv) for _ in range(n)], "empty": [0] * n}[kind]
        r.shuffle(lens)
        c.kv_len.copy_(i32(lens + [0] * (max_req - n)))
        if kind == "empty":
            c.qo_indptr.zero_()
        else:
            c.qo_indptr.copy_(i32(list(range(n + 1)) + [n] * (max_req - n)))
        for o in out:
            o.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        from_graph = [o.clone() for o in out]
        for o in out:
            o.fill_(float("nan"))
        step()
        torch.cuda.synchronize()
        for layer in range(4):
            same_bits(out[layer], from_graph[layer], f"batch {i} ({kind}), layer {layer}: graph and eager differ")


@check("8 threads, 2 contexts")
def threads(env):
    """Each thread has a stream, plan and scratch of its own; handles of attention are shared by the threads of a context."""
    contexts, errors = [env.ctx, env.new_context()], []
    case = Case([1, 1, 60], [2000, 3, 60])
    want, _ = case.run(env)
    x, weight = rnd(64, 4096), rnd(4096)
    want_norm = torch.empty_like(x)
    env.call("rms_norm", x=x, weight=weight, out=want_norm, eps=1e-6)
    torch.cuda.synchronize()
    handles = []
    for context in contexts:
        one = capi.Attention(env.f, context, case.spec(env.f), case.limits(), new_memory, stream())
        handles.append(one)
    torch.cuda.synchronize()

    def work(i):
        try:
            torch.cuda.set_device(0)
            with torch.cuda.stream(torch.cuda.Stream()):
                context, handle = contexts[i % 2], handles[i % 2]
                plan, scratch = (new_memory(n) for n in (handle.plan_bytes, handle.scratch_bytes))
                out, lse = case.outputs()
                out_norm, rows = torch.empty_like(x), sum(case.qo)
                tensors, lengths = case.tensors(env, out[:rows], lse[:rows]), case.lengths(env)
                norm = env.f.new("rms_norm_args", x=x, weight=weight, out=out_norm, eps=1e-6)
                at = [ctypes.c_void_p(v) for v in (plan.data_ptr(), scratch.data_ptr(), stream())]
                for _ in range(50):
                    env.f.call("rms_norm", context, norm, stream())
                    env.f.check(env.f.lib.fulmen_attention_plan(handle.handle, ctypes.byref(lengths), at[0], at[2]))
                    env.f.check(env.f.lib.fulmen_attention_run(handle.handle, ctypes.byref(tensors), *at))
                torch.cuda.current_stream().synchronize()
                same_bits(out_norm, want_norm, f"thread {i}: rms_norm")
                same_bits(out[:rows], want, f"thread {i}: attention")
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [w.start() for w in workers]
    [w.join() for w in workers]
    expect(not errors, "; ".join(errors[:3]))


def new_memory(nbytes):
    return torch.zeros(max(256, nbytes), dtype=torch.uint8, device=DEV)


@check("fork after use is refused in the child")
def fork_after(env):
    x, weight = rnd(4, 64), rnd(64)
    env.call("rms_norm", x=x, weight=weight, out=torch.empty_like(x), eps=1e-6)
    torch.cuda.synchronize()
    args = env.f.new("rms_norm_args", x=x, weight=weight, out=x, eps=1e-6)
    child = os.fork()
    if child == 0:
        try:
            env.f.call("rms_norm", env.ctx, args, 0)
            os._exit(1)
        except capi.FulmenError as error:
            os._exit(0 if "fork" in str(error).lower() else 2)
    _, status = os.waitpid(child, 0)
    expect(os.waitstatus_to_exitcode(status) == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}")


FORK_BEFORE = """
import os, sys
sys.path.insert(0, {folder!r})
import capi
f = capi.Fulmen({lib!r}, {header!r})
cpu = f.context("cpu")
spec = f.new("op_spec", op=f.constant("OP_RMS_NORM"), dtype=f.constant("F32"))
import ctypes
f.check(f.lib.fulmen_supports(b"sm_90a", ctypes.byref(spec)))
child = os.fork()
if child == 0:
    import torch
    x, weight = torch.randn(4, 64), torch.randn(64)
    want = torch.empty(4, 64)
    f.call("rms_norm", f.context("cpu"), f.new("rms_norm_args", x=x, weight=weight, out=want, eps=1e-6))
    x, weight, out = x.cuda(), weight.cuda(), torch.empty(4, 64, device="cuda")
    ctx = f.context("cuda", cache_dir=os.environ.get("FULMEN_CACHE_DIR", "").encode() or None)
    f.call("rms_norm", ctx, f.new("rms_norm_args", x=x, weight=weight, out=out, eps=1e-6), 0)
    torch.cuda.synchronize()
    os._exit(0 if torch.allclose(out.cpu(), want, rtol=1e-5, atol=1e-6) else 1)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@check("fork before use works in the child")
def fork_before(env):
    script = FORK_BEFORE.format(folder=os.path.dirname(capi.__file__), lib=env.lib, header=env.header)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    expect(result.returncode == 0, f"the child ended with {result.returncode}: {result.stderr[-300:]}")


@check("capture: first use of a prepared kernel, of an unprepared one")
def capture_first_use(env):
    context = env.new_context()
    env.prepare(context, "rms_norm", "BF16")
    x, weight = rnd(64, 4096), rnd(4096)
    want, out, other = (torch.empty_like(x) for _ in range(3))
    env.call("rms_norm", x=x, weight=weight, out=want, eps=1e-6)
    norm = env.f.new("rms_norm_args", x=x, weight=weight, out=out, eps=1e-6)
    layer = env.f.new("layer_norm_args", x=x, weight=weight, out=other, eps=1e-6)
    torch.cuda.synchronize()
    free, text = torch.cuda.mem_get_info()[0], ""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        env.f.call("rms_norm", context, norm, stream())
        try:
            env.f.call("layer_norm", context, layer, stream())
        except capi.FulmenError as error:
            text = str(error)
    expect("layer_norm" in text and "not prepared" in text, f"expected a refusal that names layer_norm, found {text!r}")
    graph.replay()
    torch.cuda.synchronize()
    same_bits(out, want, "the first use inside a capture gives other bits")
    env.f.call("layer_norm", context, layer, stream())  # outside the capture it is made
    torch.cuda.synchronize()
    expect(free - torch.cuda.mem_get_info()[0] < 64 << 20, "a first use took device memory")


@check("seal: a call that would have to compile is refused")
def seal(env):
    with tempfile.TemporaryDirectory() as empty:
        context = env.f.context("cuda", cache_dir=empty.encode())
        env.f.check(env.f.lib.fulmen_seal(context))
        x, weight = rnd(4, 64), rnd(64)
        try:
            env.f.call("rms_norm", context, env.f.new("rms_norm_args", x=x, weight=weight, out=x, eps=1e-6), stream())
            text = ""
        except capi.FulmenError as error:
            text = str(error)
    expect("rms_norm" in text and "seal" in text, f"expected a refusal that names rms_norm, found {text!r}")


@check("host lengths: any mix, overwritten at once, many under way")
def host_lengths(env):
    c = Case([1, 0, 3, 1], [500, 0, 40, 77], max_kv=1000)
    handle, count = c.handle(env), 300
    plans = [new_memory(handle.plan_bytes) for _ in range(2 * count)]

    def plan(memory, qo_indptr, kv_len):
        lengths = env.f.new("attention_lengths", num_levels=1, levels=[dict(qo_indptr=qo_indptr, kv_len=kv_len)])
        env.f.check(env.f.lib.fulmen_attention_plan(handle.handle, ctypes.byref(lengths), ctypes.c_void_p(memory.data_ptr()),
                                                    ctypes.c_void_p(stream())))
    qo, wide = c.qo_indptr.cpu(), c.kv_len.cpu().to(torch.int64)
    pinned, device = torch.empty(4, dtype=torch.int64).pin_memory(), []
    for i in range(count):
        device.append(torch.tensor([i, 0, 3 + i, 2 * i], device=DEV))
        plan(plans[count + i], c.qo_indptr, device[-1])
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)  # a tenth of a second in which every plan waits
    for i in range(count):
        kv = pinned if i % 3 == 0 else wide
        kv.copy_(torch.tensor([i, 0, 3 + i, 2 * i]))
        plan(plans[i], qo if i % 2 else c.qo_indptr, kv)
        kv.fill_(-1)
    torch.cuda.synchronize()
    staged = 3 * 256  # behind the plan: room for the lengths of up to 4 requests
    for i in range(count):
        same_bits(plans[i][:-staged], plans[count + i][:-staged], f"plan {i} from host lengths differs from that of device lengths")
    for qo_bad, kv_bad, name in (([0, 1, 1, 0, 5], [1, 0, 3, 4], "qo_indptr[3]"), ([0, 1, 1, 4, 5], [1, 0, 3, -4], "kv_len[3]"),
                                 ([0, 1, 1, 4, 5], [1, 0, 1001, 4], "kv_len[2]"), ([0, 1, 1, 4, 99], [1, 0, 3, 4], "qo_indptr[4]")):
        try:
            plan(plans[0], torch.tensor(qo_bad), torch.tensor(kv_bad))
            text = ""
        except capi.FulmenError as error:
            text = str(error)
        expect(name in text, f"expected a refusal that names {name}, found {text!r}")


@check("host tensors are refused during capture, by name")
def capture(env):
    c = Case([1], [40])
    handle = c.handle(env)
    qo_indptr, kv_len = c.qo_indptr.cpu(), c.kv_len.cpu()
    host = env.f.new("attention_lengths", num_levels=1, levels=[dict(qo_indptr=qo_indptr, kv_len=kv_len)])
    handle.plan(host, stream())  # outside: staged
    out, lse = c.outputs()
    handle.run(c.tensors(env, out[:1], lse[:1]), stream())
    torch.cuda.synchronize()
    want, _ = c.run(env)
    same_bits(out[:1], want, "a plan from host lengths differs")
    graph, text = torch.cuda.CUDAGraph(), ""
    x = torch.zeros(1, device=DEV)
    with torch.cuda.graph(graph):
        x.add_(1)
        try:
            handle.plan(host, stream())
        except capi.FulmenError as error:
            text = str(error)
    expect("qo_indptr" in text, f"expected a refusal that names qo_indptr, found {text!r}")
