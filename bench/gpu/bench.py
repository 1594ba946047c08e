#!/usr/bin/env python3
"""Times Fulmen's CUDA kernels beside torch's (cuBLAS, cuDNN, topk, softmax) in one process and writes one result file.

Every figure is the median over replays of a CUDA graph that repeats the call, Fulmen and its peer in turns (A B A B)
on the same inputs. Inputs rotate beyond L2 where memory is the limit. Prefill counts causal work half; decode counts
each key and value read once. Cases are named as BxLxHEADS (prefill) and BxS QO/KV dD (decode).

usage: bench.py --lib libfulmen.so --header fulmen.h -o RESULT.json [--only PATTERN] [--kernels TREE] [--budget SECONDS] [--resume]
                [section ...]
"""
import argparse
import ctypes
import datetime
import fnmatch
import json
import os
import random
import subprocess
import sys
import time

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import capi  # noqa: E402

DEV, BF16 = "cuda", torch.bfloat16
PREFILL = [(d, causal, max(1, 16384 // n), n, 2048 // d) for d in (64, 128, 256) for causal in (False, True)
           for n in (512, 1024, 4096, 16384)]
DECODE = [(1, 1024, 32, 8, 128), (1, 16384, 32, 8, 128), (1, 131072, 32, 8, 128), (16, 1024, 64, 8, 128),
          (64, 1024, 32, 8, 128), (256, 1024, 32, 8, 128), (64, 4096, 32, 8, 128), (128, 4096, 32, 8, 128),
          (64, 4096, 32, 4, 128), (64, 4096, 64, 8, 128), (64, 4096, 32, 32, 128), (64, 4096, 8, 1, 128),
          (64, 4096, 32, 8, 64), (64, 4096, 16, 8, 256)]
PREFIX = [(32768, 256, 64, 32, 32), (32768, 256, 256, 32, 32), (8192, 256, 64, 32, 8), (32768, 256, 256, 32, 8),
          (1024, 256, 16, 32, 8), (32768, 2048, 16, 64, 8)]
VOCAB = 128256


def rnd(*shape, dtype=BF16):
    return torch.randn(*shape, device=DEV, dtype=dtype)


def i32(values):
    return torch.tensor(values, dtype=torch.int32, device=DEV)


def stream():
    return torch.cuda.current_stream().cuda_stream


def copies(nbytes):
    """Input sets to rotate, so that one cycle touches 400 MB."""
    return max(1, min(8, int(4e8 // max(1, nbytes))))


class Timer:
    """A graph of `repeat` calls; each measurement replays it once between two events."""

    def __init__(self, calls, repeat):
        for call in calls:
            call()
        torch.cuda.synchronize()
        self.repeat = max(repeat, len(calls))
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for i in range(self.repeat):
                calls[i % len(calls)]()
        self.graph.replay()
        torch.cuda.synchronize()
        self.times = []

    def measure(self):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        self.times.append(begin.elapsed_time(end) * 1e3 / self.repeat)

    def median(self):
        return sorted(self.times)[len(self.times) // 2]

    def spread(self):
        return (max(self.times) - min(self.times)) / self.median()


class Bench:
    def __init__(self, fulmen, args):
        self.f, self.args = fulmen, args
        self.done = set()
        self.context = fulmen.context("cuda", cache_dir=os.environ.get("FULMEN_CACHE_DIR", "").encode() or None,
                                      kernels_dir=args.kernels.encode() if args.kernels else None)
        self.started = time.time()
        self.result = {"gpu": torch.cuda.get_device_name(), "driver": driver_version(), "cuda": torch.version.cuda,
                       "date": datetime.date.today().isoformat(),
                       "time_utc": f"{datetime.datetime.now(datetime.timezone.utc):%H:%M}", "commit": args.commit, "sm_clock_mhz": [],
                       "cublas_tflops": [], "read_gbps": None, "copy_gbps": None, "sources": sources(fulmen), "tests": [], "cases": []}

    def wanted(self, name):
        """`op case` is asked for, not there yet, and there is time for it."""
        asked = name.startswith(self.args.only) or fnmatch.fnmatch(name, self.args.only)
        return asked and name not in self.done and not (self.args.budget and time.time() - self.started > self.args.budget)

    def resume(self):
        if os.path.exists(self.args.out):
            with open(self.args.out) as file:
                self.result["cases"] = json.load(file)["cases"]
            self.done = {f"{row['op']} {row['case']}" for row in self.result["cases"]}

    def flush(self):
        with open(self.args.out, "w") as file:
            json.dump(self.result, file, indent=1)

    def compare(self, op, case, mine, peers=None, repeat=20, rounds=11, **figures):
        """Times `mine` and the peers (lists of calls, one per input set) in turns and records a row."""
        if not self.wanted(f"{op} {case}"):
            return None
        row = {"op": op, "case": case}
        timers = {}
        for name, calls in {"fulmen": mine, **(peers or {})}.items():
            try:
                timers[name] = Timer(calls, repeat)
            except Exception as error:  # a peer or kernel that lacks a case is recorded as such
                row.setdefault("not_run", {})[name] = f"{type(error).__name__}: {str(error)[:300]}"
        for _ in range(rounds):
            for timer in timers.values():
                timer.measure()
        if "fulmen" in timers:
            us = timers["fulmen"].median()
            row.update(us=round(us, 3), spread=round(timers["fulmen"].spread(), 4))
            if "flop" in figures:
                row["tflops"] = round(figures["flop"] / us / 1e6, 1)
                row["ratio"] = round(row["tflops"] / self.result["cublas_tflops"][-1], 4)
            if "bytes" in figures:
                row["gbps"] = round(figures["bytes"] / us / 1e3, 1)
                row["ratio"] = round(row["gbps"] / self.result["read_gbps"], 4)
        row["peers"] = {name: round(t.median(), 3) for name, t in timers.items() if name != "fulmen"}
        self.result["cases"].append(row)
        self.flush()
        print(json.dumps(row), flush=True)
        return row

    # ------------------------------------------------------------------------------------------ yardsticks
    def cublas(self):
        a, b = rnd(8192, 8192), rnd(8192, 8192)
        timer = Timer([lambda: a @ b], 4)
        for _ in range(8):
            timer.measure()
        self.result["cublas_tflops"].append(round(2 * 8192**3 / timer.median() / 1e6, 1))
        self.result["sm_clock_mhz"].append(sm_clock())

    def probe(self):
        self.cublas()
        x = rnd(2**30, dtype=torch.float32)
        timer = Timer([lambda: x.sum()], 2)
        for _ in range(8):
            timer.measure()
        self.result["read_gbps"] = round(4 * 2**30 / timer.median() / 1e3, 1)
        y = torch.empty_like(x)
        timer = Timer([lambda: torch.add(x, 1.0, out=y)], 2)
        for _ in range(8):
            timer.measure()
        self.result["copy_gbps"] = round(8 * 2**30 / timer.median() / 1e3, 1)
        one = torch.zeros(1, device=DEV)
        timer = Timer([lambda: one.add_(1)], 50)
        for _ in range(8):
            timer.measure()
        self.result["small_node_us"] = round(timer.median(), 2)
        print({k: self.result[k] for k in ("cublas_tflops", "read_gbps", "copy_gbps", "small_node_us")}, flush=True)

    # ------------------------------------------------------------------------------------------ attention
    def attention(self, qo_lens, kv_lens, hq, hk, d, *, causal, invariant=False, levels=None, features=0):
        rows = sum(qo_lens)
        limits = dict(max_requests=max(1, len(kv_lens)), max_rows=rows, max_qo_len=max(qo_lens), max_kv_len=max(kv_lens),
                      num_levels=levels or 1, num_groups=1,
                      groups=[dict(num_qo_heads=hq, num_kv_heads=hk, causal=int(causal), window_left=-1)])
        bf16 = self.f.constant("BF16")
        spec = dict(q_dtype=bf16, kv_dtype=bf16, o_dtype=bf16, head_dim_qk=d, head_dim_vo=d, batch_invariant=int(invariant), features=features)
        return capi.Attention(self.f, self.context, spec, limits,
                              lambda n: torch.zeros(max(256, n), dtype=torch.uint8, device=DEV), stream())

    def level(self, qo_lens, kv_lens):
        ptr = [0]
        for n in qo_lens:
            ptr.append(ptr[-1] + n)
        keep = (i32(ptr), i32(kv_lens))
        return dict(qo_indptr=keep[0], kv_len=keep[1]), keep

    def paged(self, kv_lens, hk, d, page, n_sets):
        counts = [(n + page - 1) // page for n in kv_lens]
        pool = sum(counts)
        perm = torch.randperm(pool, device=DEV, dtype=torch.int32)
        table = torch.zeros(len(kv_lens), max(1, max(counts)), dtype=torch.int32, device=DEV)
        at = 0
        for r, count in enumerate(counts):
            table[r, :count] = perm[at:at + count]
            at += count
        sets = [(rnd(pool, page, hk, d), rnd(pool, page, hk, d)) for _ in range(n_sets)]
        return table, sets

    def attention_calls(self, qo_lens, kv_lens, hq, hk, d, causal, page=16, dense=False, invariant=False, features=0, **members):
        """-> (calls of run only, one per KV set; call of plan; what must stay alive)."""
        att = self.attention(qo_lens, kv_lens, hq, hk, d, causal=causal, invariant=invariant, features=features)
        level, keep = self.level(qo_lens, kv_lens)
        lengths = self.f.new("attention_lengths", num_levels=1, levels=[level])
        att.plan(lengths, stream())
        nbytes = sum(kv_lens) * hk * d * 4
        n_sets = 1 if dense else copies(nbytes)
        q = rnd(sum(qo_lens), hq, d)
        out = torch.empty_like(q)
        if dense:
            k, v = (rnd(sum(kv_lens), hk, d) for _ in range(2))
            ptr = i32([sum(kv_lens[:i]) for i in range(len(kv_lens) + 1)])
            views = [self.f.new("attention_tensors", q=q, k=k, v=v, o=out, kv=[dict(indptr=ptr)])]
            keep = (keep, k, v, ptr)
        else:
            table, sets = self.paged(kv_lens, hk, d, page, n_sets)
            views = [self.f.new("attention_tensors", page_size=page, q=q, k=k, v=v, o=out, kv=[dict(table=table)], **members)
                     for k, v in sets]
            keep = (keep, table, sets, members)
        runs = [lambda t=t: att.run(t, stream()) for t in views]
        return runs, lambda: att.plan(lengths, stream()), (att, lengths, keep, q, out, views)

    def prefill(self):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        for d, causal, batch, length, heads in PREFILL:
            case = f"d{d} {'causal' if causal else 'full'} {batch}x{length}x{heads}"
            flop = 4 * batch * heads * length * length * d / (2 if causal else 1)
            repeat = max(2, min(10, int(1e13 / flop)))
            lens = [length] * batch
            for name, page in (("attention.prefill", 0), ("attention.prefill.page16", 16)):
                if not self.wanted(f"{name} {case}"):
                    continue
                try:
                    runs, _, keep = self.attention_calls(lens, lens, heads, heads, d, causal, page or 16, dense=page == 0)
                except capi.FulmenError as error:
                    print(case, "not run:", error, flush=True)
                    continue
                peers = {}
                if page == 0:
                    a, b, c = (rnd(batch, length, heads, d).transpose(1, 2) for _ in range(3))

                    def cudnn():
                        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                            torch.nn.functional.scaled_dot_product_attention(a, b, c, is_causal=causal)
                    peers["cudnn"] = [cudnn]
                self.compare(name, case, runs, peers, repeat, 7, flop=flop)
                del runs, keep, peers

    def variants(self):
        """What each variant costs beside the plain kernel, on one prefill and one decode shape."""
        hq, hk, d = 32, 8, 128
        members = {"plain": {}, "soft_cap": dict(logits_soft_cap=30.0), "alibi": dict(alibi_slopes=torch.rand(hq, device=DEV) * 0.01),
                   "sinks": dict(sinks=torch.zeros(hq, device=DEV)), "rope": {}, "custom_mask": {}, "no_softmax": {}}
        for shape, qo, kv in (("prefill 2x4096", [4096] * 2, [4096] * 2), ("decode 64x4096", [1] * 64, [4096] * 64)):
            ptr = [0]
            for n, m in zip(qo, kv):
                ptr.append(ptr[-1] + n * m // 8)
            members["custom_mask"] = dict(mask=torch.full((ptr[-1],), 255, dtype=torch.uint8, device=DEV), mask_indptr=i32(ptr))
            for name, extra in members.items():
                case = f"{name} {shape} {hq}/{hk} d{d}"
                if not self.wanted(f"attention.variants {case}"):
                    continue
                features = 0 if name == "plain" else self.f.constant("ATTENTION_" + name.upper())
                runs, _, keep = self.attention_calls(qo, kv, hq, hk, d, True, features=features, **extra)
                flop = sum(4 * hq * n * (m - n / 2) * d for n, m in zip(qo, kv))
                nbytes = sum(kv) * hk * d * 4
                self.compare("attention.variants", case, runs, None, max(4, len(runs)), 7, **(dict(flop=flop) if qo[0] > 1 else dict(bytes=nbytes)))
                del runs, keep

    def decode_case(self, op, case, lens, hq, hk, d, page=16, invariant=False):
        if not self.wanted(f"{op} {case}"):
            return None
        try:
            runs, _, keep = self.attention_calls([1] * len(lens), lens, hq, hk, d, True, page, invariant=invariant)
        except capi.FulmenError as error:
            print(op, case, "not run:", error, flush=True)
            return None
        return self.compare(op, case, runs, repeat=max(8, len(runs)), bytes=sum(lens) * hk * d * 4)

    def decode(self):
        for b, s, hq, hk, d in DECODE:
            self.decode_case("attention.decode", f"{b}x{s} {hq}/{hk} d{d}", [s] * b, hq, hk, d)
        for page in (1, 16, 64, 256):
            self.decode_case("attention.decode.page", f"page {page} 64x4096 32/8 d128", [4096] * 64, 32, 8, 128, page)
        for b, s in ((1, 16384), (64, 4096)):
            self.decode_case("attention.decode.invariant", f"{b}x{s} 32/8 d128", [s] * b, 32, 8, 128, invariant=True)

    def batch(self):
        for s in (1024, 4096):
            for b in (1, 2, 4, 8, 16, 32, 64, 128, 256):
                if b * s <= 128 * 4096:
                    self.decode_case("attention.decode.batch", f"{b}x{s} 32/8 d128", [s] * b, 32, 8, 128)

    def schedule(self, lens, hq, hk, d):
        """What explain says of the schedule of these lengths, one row each: enough to draw it."""
        bf16 = self.f.constant("BF16")
        spec = self.f.new("attention_spec", q_dtype=bf16, kv_dtype=bf16, o_dtype=bf16, head_dim_qk=d, head_dim_vo=d)
        limits = self.f.new("attention_limits", max_requests=len(lens), max_rows=len(lens), max_qo_len=1, max_kv_len=max(lens), num_levels=1,
                            num_groups=1, groups=[dict(num_qo_heads=hq, num_kv_heads=hk, causal=1, window_left=-1)])
        op = self.f.new("op_spec", op=self.f.constant("OP_ATTENTION"), attention=ctypes.addressof(spec), limits=ctypes.addressof(limits))
        text = ctypes.c_char_p()
        self.f.check(self.f.lib.fulmen_explain(b"sm_90a", ctypes.byref(op), ctypes.byref(text)))
        schedule = json.loads(text.value)["schedule"]
        return {"lengths": lens, "kv_heads": hk, "unit_keys": schedule["unit_keys"], "workers": schedule["groups"][0]["workers"]}

    def uneven(self):
        total, n = 64 * 4096, 64
        weight = [1 / (i + 1) for i in range(n)]
        zipf = [max(1, int(total * w / sum(weight))) for w in weight]
        random.Random(1).shuffle(zipf)
        for name, lens in (("uniform", [4096] * n), ("one long", [total - 512 * (n - 1)] + [512] * (n - 1)), ("zipf", zipf)):
            row = self.decode_case("attention.uneven", f"{name} 64 requests 32/8 d128", lens, 32, 8, 128)
            if row:
                row["schedule"] = self.schedule(lens, 32, 8, 128)
                self.flush()

    def plan(self):
        for b in (1, 64, 256, 4096):
            lens = [64] * b
            case = f"{b} requests 32/8"
            if not self.wanted(f"attention.plan {case}"):
                continue
            try:
                _, plan, keep = self.attention_calls([1] * b, lens, 32, 8, 128, True)
            except capi.FulmenError as error:
                print(case, "not run:", error, flush=True)
                continue
            self.compare("attention.plan", case, [plan])
            self.host_plan(case, keep[0], b, lens)
            del keep

    def host_plan(self, case, att, b, lens):
        """Lengths on the host: such a call can't be captured, so calls in a row are timed, eagerly, beside device lengths."""
        if not self.wanted(f"attention.plan.host {case}"):
            return
        times = {}
        for place in ("cpu", DEV):
            arrays = torch.arange(b + 1, dtype=torch.int32, device=place), torch.tensor(lens, dtype=torch.int32, device=place)
            lengths = self.f.new("attention_lengths", num_levels=1, levels=[dict(qo_indptr=arrays[0], kv_len=arrays[1])])
            for _ in range(20):
                att.plan(lengths, stream())
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            for _ in range(200):
                att.plan(lengths, stream())
            end.record()
            end.synchronize()
            times[place] = begin.elapsed_time(end) * 1e3 / 200
        row = {"op": "attention.plan.host", "case": case, "us": round(times["cpu"], 3), "bar": None, "peers": {"device lengths": round(times[DEV], 3)}}
        self.result["cases"].append(row)
        self.flush()
        print(json.dumps(row), flush=True)

    def prefix(self):
        page, d = 16, 128
        for shared, own, b, hq, hk in PREFIX:
            case = f"P{shared} U{own} B{b} {hq}/{hk}"
            if not self.wanted(f"attention.prefix {case}"):
                continue
            pages_shared, pages_own = shared // page, own // page
            pool = pages_shared + b * pages_own
            k, v, q = rnd(pool, page, hk, d), rnd(pool, page, hk, d), rnd(b, hq, d)
            out = torch.empty_like(q)
            shared_table = torch.arange(pages_shared, dtype=torch.int32, device=DEV).view(1, -1)
            own_table = torch.arange(pages_shared, pool, dtype=torch.int32, device=DEV).view(b, -1)
            flat_table = torch.cat([shared_table.expand(b, -1), own_table], 1).contiguous()
            try:
                flat = self.attention([1] * b, [shared + own] * b, hq, hk, d, causal=True)
                level, keep_a = self.level([1] * b, [shared + own] * b)
                flat.plan(self.f.new("attention_lengths", num_levels=1, levels=[level]), stream())
                flat_tensors = self.f.new("attention_tensors", page_size=page, q=q, k=k, v=v, o=out, kv=[dict(table=flat_table)])
                self.compare("attention.prefix.flat", case, [lambda: flat.run(flat_tensors, stream())], repeat=4)
                tree = self.attention([1] * b, [shared + own] * b, hq, hk, d, causal=True, levels=2)
                top, keep_b = self.level([b], [shared])
                leaf, keep_c = self.level([1] * b, [own] * b)
                tree.plan(self.f.new("attention_lengths", num_levels=2, levels=[top, leaf]), stream())
                tree_tensors = self.f.new("attention_tensors", page_size=page, q=q, k=k, v=v, o=out,
                                          kv=[dict(table=shared_table), dict(table=own_table)])
                self.compare("attention.prefix", case, [lambda: tree.run(tree_tensors, stream())], repeat=4,
                             bytes=(shared + b * own) * hk * d * 4)
            except capi.FulmenError as error:
                print(case, "not run:", error, flush=True)

    # ------------------------------------------------------------------------------------------ the other ops
    def ops_case(self, op, case, calls, **figures):
        try:
            self.compare(op, case, calls, figures.pop("peers", None), figures.pop("repeat", 20), **figures)
        except capi.FulmenError as error:
            print(op, case, "not run:", error, flush=True)

    def sampling(self):
        f, ctx = self.f, self.context
        for rows in (1, 16, 64, 256, 512):
            n = copies(rows * VOCAB * 4)
            logits = [rnd(rows, VOCAB, dtype=torch.float32) * 3 for _ in range(n)]
            probs = torch.empty_like(logits[0])
            tokens = torch.empty(rows, dtype=torch.int32, device=DEV)
            values, indices = torch.empty(rows, 50, device=DEV), torch.empty(rows, 50, dtype=torch.int32, device=DEV)
            case, nbytes = f"{rows}x{VOCAB} f32", rows * VOCAB * 4

            def calls(op, make):
                views = [make(x) for x in logits]
                return [lambda a=a: f.call(op, ctx, a, stream()) for a in views]
            filters = {"all": {}, "top_k 50": dict(top_k=50), "top_p .9": dict(top_p=0.9), "min_p .05": dict(min_p=0.05),
                       "joint 50 .9": dict(top_k=50, top_p=0.9, order=1)}
            self.ops_case("softmax", case, calls("softmax", lambda x: f.new("softmax_args", logits=x, probs=probs)),
                          bytes=nbytes, repeat=16, peers={"torch": [lambda x=x: torch.softmax(x, -1) for x in logits]})
            self.ops_case("argmax", case, calls("argmax", lambda x: f.new("argmax_args", x=x, index=tokens)), bytes=nbytes,
                          repeat=16, peers={"torch": [lambda x=x: torch.argmax(x, -1) for x in logits]})
            self.ops_case("top_k", case, calls("top_k", lambda x: f.new("top_k_args", x=x, values=values, indices=indices)),
                          bytes=nbytes, repeat=16, peers={"torch": [lambda x=x: torch.topk(x, 50) for x in logits]})
            for name, params in filters.items():
                filt = dict(temperature=1.0, top_p=1.0, **{k: v for k, v in params.items() if k != "top_p"})
                filt.update(params)
                self.ops_case("sample", f"{name} {case}",
                              calls("sample", lambda x: f.new("sample_args", input=x, tokens=tokens, filter=filt, seed=1)),
                              bytes=nbytes, repeat=16)
            for x in logits:  # as models' are: a few words far above the rest
                peak = torch.randint(0, VOCAB, (rows, 40), device=DEV)
                x.scatter_(1, peak, x.gather(1, peak) + 14)
            filt = dict(temperature=1.0, top_p=0.9)
            self.ops_case("sample", f"top_p .9 peaked {case}",
                          calls("sample", lambda x: f.new("sample_args", input=x, tokens=tokens, filter=filt, seed=1)), bytes=nbytes, repeat=16)

    def stream_ops(self):
        f, ctx = self.f, self.context
        for t in (1, 128, 8192):
            n = copies(t * 4096 * 4)
            weight = rnd(4096)
            xs = [(rnd(t, 4096), rnd(t, 4096), rnd(t, 2 * 11008), rnd(t, 32, 128), rnd(t, 8, 128), rnd(t, 8, 128)) for _ in range(n)]
            out, gated = torch.empty(t, 4096, device=DEV, dtype=BF16), torch.empty(t, 11008, device=DEV, dtype=BF16)
            pos = torch.arange(t, device=DEV, dtype=torch.int32)
            slots = torch.randperm(max(t, 16), device=DEV)[:t].to(torch.int64)
            cache = [(rnd(max(t, 16) // 16, 16, 8, 128), rnd(max(t, 16) // 16, 16, 8, 128)) for _ in range(n)]

            def calls(op, make):
                views = [make(i) for i in range(n)]
                return [lambda a=a: f.call(op, ctx, a, stream()) for a in views]
            case = f"{t} tokens"
            self.ops_case("rms_norm", case, calls("rms_norm", lambda i: f.new("rms_norm_args", x=xs[i][0], weight=weight, out=out, eps=1e-6)), bytes=t * 4096 * 4)
            self.ops_case("add_rms_norm", case, calls("rms_norm", lambda i: f.new("rms_norm_args", x=xs[i][0], weight=weight, residual=xs[i][1], out=xs[i][0], eps=1e-6)), bytes=t * 4096 * 8)
            self.ops_case("silu_and_mul", case, calls("act_and_mul", lambda i: f.new("act_and_mul_args", x=xs[i][2], out=gated)), bytes=t * 11008 * 6)
            self.ops_case("rope", case, calls("rope", lambda i: f.new("rope_args", q=xs[i][3], k=xs[i][4], positions=pos)), bytes=t * 40 * 128 * 4)
            self.ops_case("append_kv", case, calls("append_kv", lambda i: f.new("append_kv_args", k=xs[i][4], v=xs[i][5], k_cache=cache[i][0], v_cache=cache[i][1], slot_mapping=slots)), bytes=t * 8 * 128 * 8)


def sources(fulmen):
    """{op: digest of the kernel sources that it runs}."""
    text = ctypes.c_char_p()
    fulmen.check(fulmen.lib.fulmen_prepare_list(b"sm_90a", None, None, 0, ctypes.byref(text)))
    digests = {}
    for row in json.loads(text.value):
        digests.setdefault(row["op"], set()).add(row["sources"])
    return {op: "+".join(sorted(found)) for op, found in digests.items()}


def driver_version():
    return subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                          text=True).stdout.strip()


def sm_clock():
    text = subprocess.run(["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"], capture_output=True,
                          text=True).stdout.strip()
    return int(text.split()[0]) if text else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", required=True)
    parser.add_argument("--header", required=True)
    parser.add_argument("--kernels", metavar="TREE", help="a source tree to take kernels/ from, to compare one with another")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--only", default="", help="only cases whose `op case` starts with this or matches it with * and ?")
    parser.add_argument("--resume", action="store_true", help="keep the cases that the file already holds")
    parser.add_argument("--budget", type=float, default=0, help="seconds after which no new case starts")
    parser.add_argument("-o", "--out", required=True)
    sections = ("prefill", "decode", "batch", "uneven", "plan", "prefix", "variants", "sampling", "stream_ops")
    parser.add_argument("sections", nargs="*", metavar="section", help=f"default: all of {', '.join(sections)}")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.zeros(1, device=DEV)  # torch's primary context becomes current before Fulmen looks for one
    bench = Bench(capi.Fulmen(args.lib, args.header), args)
    if args.resume:
        bench.resume()
    bench.probe()
    for name in args.sections or sections:
        getattr(bench, name)()
    bench.cublas()
    clocks = [c for c in bench.result["sm_clock_mhz"] if c]
    bench.result["sm_clock_mhz"] = [min(clocks), max(clocks)] if clocks else []
    bench.flush()


if __name__ == "__main__":
    main()
