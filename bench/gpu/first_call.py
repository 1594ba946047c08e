#!/usr/bin/env python3
"""Times what comes before the first result: loading the library, a kernel cold, from disk, eight kernels at once.

Each figure is taken with a cache folder and a context of its own. FlashInfer's figures in the rows are those of
shared measurements on 16 cores: 14 s for the fastest of its attention kernels.

usage: first_call.py --lib libfulmen.so --header fulmen.h -o FIRST_CALL.json [--rounds N]
"""
import argparse
import ctypes
import datetime
import glob
import json
import os
import subprocess
import sys
import tempfile
import time

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import capi  # noqa: E402

PROGRESS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p, ctypes.c_double)
LOAD = "import ctypes, time; t = time.perf_counter(); ctypes.CDLL({!r}); print(time.perf_counter() - t)"
# (head dim, query rows of a request): eight attention kernels.
KERNELS = [(d, rows) for d in (64, 128, 256) for rows in (1, 8, 512)][:8]


def find_nvrtc():
    """NVRTC of torch's wheels, where the library doesn't look by itself."""
    for folder in sys.path:
        found = [p for p in glob.glob(os.path.join(folder, "nvidia/**/libnvrtc.so.1[0-9]*"), recursive=True)]
        if found:
            return sorted(found)[-1]
    return None


class Bench:
    def __init__(self, args):
        self.f, self.args, self.keep = capi.Fulmen(args.lib, args.header), args, []
        self.nvrtc = os.environ.get("FULMEN_NVRTC") or find_nvrtc()
        self.result = {"gpu": torch.cuda.get_device_name(), "date": datetime.date.today().isoformat(), "nvrtc": self.nvrtc,
                       "cores": os.cpu_count(), "cases": []}

    def add(self, case, seconds, bar=None, **more):
        row = {"op": "first_call", "case": case, "us": round(seconds * 1e6, 1), "bar": bar, **more}
        self.result["cases"].append(row)
        print(json.dumps(row), flush=True)
        with open(self.args.out, "w") as file:
            json.dump(self.result, file, indent=1)

    def context(self, cache):
        return self.f.context("cuda", cache_dir=cache.encode(), nvrtc_path=self.nvrtc.encode() if self.nvrtc else None)

    def attention(self, d, rows):
        bf16 = self.f.constant("BF16")
        spec = self.f.new("attention_spec", q_dtype=bf16, kv_dtype=bf16, o_dtype=bf16, head_dim_qk=d, head_dim_vo=d)
        limits = self.f.new("attention_limits", max_requests=64, max_rows=64 * rows, max_qo_len=rows, max_kv_len=8192, num_levels=1,
                            num_groups=1, groups=[dict(num_qo_heads=32, num_kv_heads=8, causal=1, window_left=-1)])
        self.keep += [spec, limits]
        return dict(op=self.f.constant("OP_ATTENTION"), attention=ctypes.addressof(spec), limits=ctypes.addressof(limits))

    def prepare(self, context, specs):
        """-> (seconds of the call, {kernel: its own seconds})."""
        each = {}

        @PROGRESS
        def progress(_, done, total, kernel, seconds):
            each[f"{kernel.decode()} {done}"] = seconds
        array = (self.f.structs["fulmen_op_spec"] * max(1, len(specs)))(*[self.f.new("op_spec", **s) for s in specs])
        begin = time.perf_counter()
        self.f.check(self.f.lib.fulmen_prepare(context, array if specs else None, len(specs), progress, None))
        return time.perf_counter() - begin, each

    def compiles(self, context):
        text = ctypes.c_char_p()
        self.f.check(self.f.lib.fulmen_context_stats(context, ctypes.byref(text)))
        return json.loads(text.value)["compiles"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", required=True)
    parser.add_argument("--header", required=True)
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.zeros(1, device="cuda")
    bench = Bench(args)

    loads = sorted(float(subprocess.run([sys.executable, "-c", LOAD.format(os.path.abspath(args.lib))], capture_output=True,
                                        text=True).stdout) for _ in range(11))
    bench.add("library load", loads[len(loads) // 2], bar=20000, size_bytes=os.path.getsize(args.lib), size_bar=15000000)

    with tempfile.TemporaryDirectory() as folder:
        specs = [bench.attention(d, rows) for d, rows in KERNELS]
        one_by_one, together, cold, disk = [], [], {}, {}
        for i in range(args.rounds):
            cache = os.path.join(folder, f"serial{i}")
            context = bench.context(cache)
            bench.prepare(context, [dict(op=bench.f.constant("OP_RMS_NORM"), dtype=bench.f.constant("BF16"))])  # opens the compiler
            total = 0.0
            for (d, rows), spec in zip(KERNELS, specs):
                seconds, each = bench.prepare(context, [spec])
                total += seconds
                for kernel, s in each.items():
                    name = f"{kernel.split()[0]} d{d} rows {rows}"
                    cold[name] = min(s, cold.get(name, 1e9))
            one_by_one.append(total)
            context = bench.context(os.path.join(folder, f"parallel{i}"))
            bench.prepare(context, [dict(op=bench.f.constant("OP_RMS_NORM"), dtype=bench.f.constant("BF16"))])
            together.append(bench.prepare(context, specs)[0])
            again = bench.context(cache)
            for (d, rows), spec in zip(KERNELS, specs):
                seconds, each = bench.prepare(again, [spec])
                name = f"attend d{d} rows {rows}"
                disk[name] = min(seconds, disk.get(name, 1e9))
            if bench.compiles(again) != 0:
                raise RuntimeError("a filled cache was not used")
        slowest = max(cold, key=cold.get)
        bench.add(f"attention, cold: {slowest}", cold[slowest], bar=2e6, peers={"flashinfer": 14e6},
                  each={k: round(v * 1e3, 1) for k, v in cold.items()})
        slowest = max(disk, key=disk.get)
        bench.add(f"attention, from disk: {slowest}", disk[slowest], bar=20000, each={k: round(v * 1e3, 2) for k, v in disk.items()})
        a, b = min(one_by_one), min(together)
        bench.add("8 kernels in parallel", b, one_by_one_us=round(a * 1e6), ratio=round(a / b, 2), ratio_bar=4)

        cache = os.path.join(folder, "sample")
        seconds, each = bench.prepare(bench.context(cache), [dict(op=bench.f.constant("OP_SAMPLE"), dtype=bench.f.constant("F32"))])
        bench.add("sample, cold", max(each.values()), bar=2e6, peers={"flashinfer top_k": 480e6})
        seconds, each = bench.prepare(bench.context(cache), [dict(op=bench.f.constant("OP_SAMPLE"), dtype=bench.f.constant("F32"))])
        bench.add("sample, from disk", max(each.values()), bar=20000)
        cache = os.path.join(folder, "all")
        seconds, each = bench.prepare(bench.context(cache), [])
        bench.add(f"all {len(each)} kernels, cold", seconds, slowest_us=round(max(each.values()) * 1e6))
        context = bench.context(cache)
        seconds, each = bench.prepare(context, [])
        bench.add(f"all {len(each)} kernels, from disk and loaded", seconds, compiles=bench.compiles(context))


if __name__ == "__main__":
    main()
