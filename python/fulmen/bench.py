"""`python -m fulmen bench`: Fulmen beside its peers in one process, on the same inputs, in turns (A B A B).

A line of the table is one shape: the median of the rounds in microseconds, the spread of Fulmen's, and how many times
faster it is than each peer that is installed and takes the shape. On a GPU each round replays a CUDA graph of the call.
"""
import json
import statistics
import sys
import time

DECODE = ["1x1024x32x8x128", "16x1024x64x8x128", "64x4096x32x8x128"]
PREFILL = ["1x2048x16x16x128", "4x4096x16x16x128"]
CPU_DECODE, CPU_PREFILL = ["1x1024x8x2x64", "8x1024x8x2x64"], ["1x256x8x2x64"]


def add_arguments(parser) -> None:
    parser.add_argument("--peers", default="torch,flashinfer,flash_attn", help="comma-separated; those not installed are skipped")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto",
                        help="auto: a GPU where torch has one (default), else the CPU")
    parser.add_argument("--decode", nargs="*", metavar="BxSxHQxHKxD", help="requests x keys x query heads x kv heads x head size")
    parser.add_argument("--prefill", nargs="*", metavar="BxSxHQxHKxD", help="the same, causal, as many rows as keys")
    parser.add_argument("--page-size", type=int, default=16, help="keys a page (default: 16)")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each, in turns; the median counts (default: 9)")
    parser.add_argument("--json", metavar="FILE", help="write the figures, in microseconds")
    parser.add_argument("--svg", metavar="FILE", help="draw them")


class _Peer:
    """How a library does a shape: `prepare(kind, q, k, v, lengths)` -> a call of no arguments, or an exception."""

    def __init__(self, name, torch, device):
        self.name, self.torch, self.device = name, torch, device

    def prepare(self, kind, q, k, v, lengths):
        torch = self.torch
        batch, (hq, d), hk = len(lengths), q.shape[1:], k.shape[1]
        if len(set(lengths)) > 1:
            raise ValueError("shapes of one length only")
        length, rows = lengths[0], q.shape[0] // batch
        if self.name == "torch":
            a = q.view(batch, rows, hq, d).transpose(1, 2)
            b, c = (x.view(batch, length, hk, d).transpose(1, 2) for x in (k, v))
            return lambda: torch.nn.functional.scaled_dot_product_attention(a, b, c, is_causal=kind == "prefill",
                                                                            enable_gqa=hq != hk)
        if self.name == "flash_attn":
            from flash_attn import flash_attn_func
            a, b, c = q.view(batch, rows, hq, d), k.view(batch, length, hk, d), v.view(batch, length, hk, d)
            return lambda: flash_attn_func(a, b, c, causal=kind == "prefill")
        import flashinfer
        workspace = torch.empty(256 << 20, dtype=torch.uint8, device=self.device)
        def indptr(n): return torch.arange(batch + 1, dtype=torch.int32, device=self.device) * n
        wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD")
        wrapper.plan(indptr(rows), indptr(length), hq, hk, d, causal=kind == "prefill", q_data_type=q.dtype)
        return lambda: wrapper.run(q, k, v)


def _fulmen_call(fulmen, context, xp, kind, q, k, v, lengths, page_size):
    """The keys of each request in shuffled pages, as a server has them."""
    batch, hq, d, hk = len(lengths), q.shape[1], q.shape[2], k.shape[1]
    rows = [1] * batch if kind == "decode" else list(lengths)
    counts = [-(-n // page_size) for n in lengths]
    order, table, at = xp.permutation(sum(counts)), xp.zeros((batch, max(counts)), "i32"), 0
    k_cache, v_cache = (xp.zeros((sum(counts), page_size, hk, d), like=k) for _ in range(2))
    for r, n in enumerate(counts):
        table[r, :n] = order[at:at + n]
        at += n
    def offsets(ns): return xp.array([sum(ns[:i]) for i in range(len(ns) + 1)])
    fulmen.append_kv(k, v, k_cache, v_cache, qo_indptr=offsets(lengths), kv_len=xp.array(lengths), table=table)
    att = fulmen.Attention(context, [fulmen.Group(hq, hk)], dtype=xp.dtype, head_dim=d, max_requests=batch,
                           max_rows=sum(rows), max_qo_len=max(rows), max_kv_len=max(lengths))
    att.plan(offsets(rows), xp.array(lengths))
    out = xp.zeros(q.shape, like=q)
    return lambda: att.run(q, k_cache, v_cache, table, out=out)


class _Numpy:
    name, dtype = "numpy", "f32"

    def __init__(self):
        import numpy
        self.np, self.random = numpy, numpy.random.default_rng(1)

    def normal(self, *shape): return self.random.standard_normal(shape).astype(self.np.float32)
    def permutation(self, n): return self.random.permutation(n)
    def array(self, values): return self.np.array(values, self.np.int32)
    def zeros(self, shape, dtype=None, like=None): return self.np.zeros(shape, self.np.int32 if dtype else like.dtype)

    def time(self, call):
        begin = time.perf_counter()
        call()
        return (time.perf_counter() - begin) * 1e6


class _Torch:
    name, dtype = "torch", "bf16"

    def __init__(self, torch, device):
        self.torch, self.device, self.graphs = torch, device, {}

    def normal(self, *shape): return self.torch.randn(*shape, device=self.device).to(self.torch.bfloat16)
    def permutation(self, n): return self.torch.randperm(n, device=self.device, dtype=self.torch.int32)
    def array(self, values): return self.torch.tensor(values, dtype=self.torch.int32, device=self.device)

    def zeros(self, shape, dtype=None, like=None):
        return self.torch.zeros(shape, dtype=self.torch.int32 if dtype else like.dtype, device=self.device)

    def time(self, call):
        torch = self.torch
        if self.device == "cpu":
            return _Numpy.time(self, call)
        repeat = 10
        if call not in self.graphs:
            call()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(repeat):
                    call()
            self.graphs[call] = graph
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.graphs[call].replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / repeat


def _parse(text):
    parts = text.split("x")
    if len(parts) != 5 or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise SystemExit(f"fulmen bench: shape: expected BxSxHQxHKxD in positive numbers, found {text!r}")
    return [int(p) for p in parts]


def run(args) -> int:
    import importlib.util

    import fulmen
    peers = [p for p in args.peers.split(",") if p]
    unknown = set(peers) - {"torch", "flashinfer", "flash_attn"}
    if unknown:
        raise SystemExit("fulmen bench: --peers: expected some of torch, flashinfer, flash_attn, found "
                         f"{', '.join(sorted(unknown))}")
    torch = None
    if importlib.util.find_spec("torch"):
        import torch
    device = args.device
    if device == "auto":
        device = "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch is None:
        raise SystemExit("fulmen bench: --device cuda: expected torch for inputs on the GPU, found none; pip install torch")
    xp = _Torch(torch, device) if torch is not None else _Numpy()
    context = fulmen.Context(device)
    installed = [p for p in peers if importlib.util.find_spec(p) and (p == "torch" or device == "cuda")]
    small = device == "cpu"
    cases = [("decode", s) for s in (args.decode if args.decode is not None else CPU_DECODE if small else DECODE)]
    cases += [("prefill", s) for s in (args.prefill if args.prefill is not None else CPU_PREFILL if small else PREFILL)]
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{where}, {xp.dtype}, page size {args.page_size}; median of {args.rounds} rounds"
          f"{'' if installed else '; none of the peers is installed for this device'}", file=sys.stderr)
    rows = []
    print(f"{'case':32} {'fulmen':>12} {'spread':>8} " + " ".join(f"{p:>20}" for p in installed))
    for kind, text in cases:
        batch, length, hq, hk, d = _parse(text)
        q = xp.normal(batch * (1 if kind == "decode" else length), hq, d)
        k, v = (xp.normal(batch * length, hk, d) for _ in range(2))
        calls = {"fulmen": _fulmen_call(fulmen, context, xp, kind, q, k, v, [length] * batch, args.page_size)}
        row = {"case": f"{kind} {text}", "us": {}, "not_run": {}}
        for name in installed:
            try:
                calls[name] = _Peer(name, torch, device).prepare(kind, q, k, v, [length] * batch)
                calls[name]()
            except Exception as error:  # a peer that lacks a shape is said so
                calls.pop(name, None)
                row["not_run"][name] = f"{type(error).__name__}: {str(error)[:200]}"
        times = {name: [] for name in calls}
        for _ in range(args.rounds + 1):
            for name, call in calls.items():
                times[name].append(xp.time(call))
        for name, values in times.items():
            row["us"][name] = round(statistics.median(values[1:]), 2)
        mine = times["fulmen"][1:]
        row["spread"] = round((max(mine) - min(mine)) / row["us"]["fulmen"], 3)
        rows.append(row)
        cells = [f"{row['us'][p]:>10.1f} us {row['us'][p] / row['us']['fulmen']:>5.2f}x" if p in row["us"] else f"{'not run':>20}"
                 for p in installed]
        print(f"{row['case']:32} {row['us']['fulmen']:>9.1f} us {row['spread']:>8.1%} " + " ".join(cells), flush=True)
    result = {"fulmen": fulmen.__version__, "device": where, "dtype": xp.dtype, "page_size": args.page_size, "rows": rows}
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)
    if args.svg:
        with open(args.svg, "w") as file:
            file.write(svg(result))
    return 0


COLOURS = {"fulmen": "#d9480f", "torch": "#868e96", "flashinfer": "#1971c2", "flash_attn": "#2f9e44"}


def svg(result) -> str:
    """Time of each library over Fulmen's, a bar each; shorter is faster."""
    bars, y = [], 40
    longest = max(us / row["us"]["fulmen"] for row in result["rows"] for us in row["us"].values())
    for row in result["rows"]:
        bars.append(f'<text x="8" y="{y + 4}" font-weight="bold">{row["case"]}</text>')
        y += 12
        for name, us in row["us"].items():
            ratio = us / row["us"]["fulmen"]
            width = 380 * ratio / longest
            bars.append(f'<rect x="90" y="{y}" width="{width:.1f}" height="12" fill="{COLOURS[name]}"/>'
                        f'<text x="84" y="{y + 10}" text-anchor="end">{name}</text>'
                        f'<text x="{96 + width:.1f}" y="{y + 10}">{us:.1f} us</text>')
            y += 15
        y += 14
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="580" height="{y}" font-family="sans-serif" font-size="11">'
            f'<rect width="100%" height="100%" fill="white"/><text x="8" y="18" font-size="13">Attention on {result["device"]}, '
            f'{result["dtype"]}: time of a call, shorter is faster</text>{"".join(bars)}</svg>\n')
