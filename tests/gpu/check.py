#!/usr/bin/env python3
"""Checks Fulmen's CUDA kernels on a real GPU against float64 references, the CPU back end, and themselves.

Error may be at most twice that of a plain evaluation in the same precision, plus a floor. Unwritten cache slots and
padding are NaN. Every check prints a line as it ends and the JSON file is rewritten after each, so that a run that is
cut short loses nothing; --resume skips what a file already holds as passed.

usage: check.py --lib libfulmen.so --header fulmen.h -o CHECK.json [--only PREFIX] [--budget SECONDS] [--resume]
"""
import argparse
import json
import math
import os
import random
import sys
import threading
import time
import traceback

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.environ.get("FULMEN_CAPI_DIR", os.path.join(HERE, "../../bench/gpu")))
import capi  # noqa: E402

DEV = "cuda"
F64, BF16, F16, F32 = torch.float64, torch.bfloat16, torch.float16, torch.float32
CHECKS = []


def check(name, **cases):
    """Registers a check; with cases={name: kwargs} one per case."""
    def wrap(function):
        for case, kwargs in (cases.get("cases") or {"": {}}).items():
            CHECKS.append((f"{name} {case}".strip(), function, kwargs))
        return function
    return wrap


def stream():
    return torch.cuda.current_stream().cuda_stream


def i32(values):
    return torch.tensor(values, dtype=torch.int32, device=DEV)


def rnd(*shape, dtype=BF16, scale=1.0):
    return (torch.randn(*shape, device=DEV, dtype=F32) * scale).to(dtype)


def expect(condition, text):
    if not condition:
        raise AssertionError(text)


def same_bits(a, b, text):
    expect(a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8)), text)


def close(got, want, plain, what, floor=1e-5):
    """|got - want| <= 2 |plain - want| + floor, element by element of the worst; NaN and infinities must agree."""
    got, plain = got.to(F64), plain.to(F64)
    expect(torch.equal(torch.isnan(got), torch.isnan(want)), f"{what}: NaN differ in {(torch.isnan(got) != torch.isnan(want)).sum()} places")
    inf = torch.isinf(want)
    expect(torch.equal(got[inf], want[inf]), f"{what}: infinities differ")
    finite = torch.isfinite(want)
    if not finite.any():
        return
    error = (got - want).abs()[finite].max().item()
    allowed = 2 * (plain - want).abs()[finite].max().item() + floor * max(1.0, want[finite].abs().max().item())
    if not error <= allowed:
        where = ((got - want).abs().nan_to_num(0, 0, 0) * finite).flatten().argmax().item()
        index = [int(i) for i in torch.unravel_index(torch.tensor(where), want.shape)]
        raise AssertionError(f"{what}: error {error:.3g} > {allowed:.3g} at {index}: got {got.flatten()[where]:.6g}, want {want.flatten()[where]:.6g}")


class Env:
    def __init__(self, lib, header):
        self.f = capi.Fulmen(lib, header)
        self.ctx = self.f.context("cuda", cache_dir=os.environ.get("FULMEN_CACHE_DIR", "").encode() or None)
        self.cpu = self.f.context("cpu")

    def call(self, op, **members):
        self.f.call(op, self.ctx, self.f.new(op + "_args", **members), stream())

    def call_cpu(self, op, **members):
        self.f.call(op, self.cpu, self.f.new(op + "_args", **members))


# ------------------------------------------------------------------------------------------------ attention
class Case:
    """A batch: ragged queries against paged (or ragged) keys; unwritten slots are NaN."""

    def __init__(self, qo, kv, hq=8, hk=2, d=128, dv=None, dtype=BF16, page=16, causal=True, window=-1, features=(),
                 layout="NHD", table="2d", index=torch.int32, invariant=0, seed=1, scale=None, o_dtype=None, max_kv=None,
                 num_sms=0, soft_cap=20.0, rope_interleaved=0):
        torch.manual_seed(seed)
        self.__dict__.update(qo=qo, kv=kv, hq=hq, hk=hk, d=d, dv=dv or d, dtype=dtype, page=page, causal=causal, window=window,
                             features=features, table_form=table, invariant=invariant, scale=scale, o_dtype=o_dtype or dtype,
                             max_kv=max_kv or max(kv + [1]), num_sms=num_sms, soft_cap=soft_cap if "soft_cap" in features else 0.0,
                             rope_interleaved=rope_interleaved)
        rows = sum(qo)
        self.q = rnd(rows, hq, d, dtype=dtype)
        self.keys = [rnd(n, hk, d, dtype=dtype) for n in kv]
        self.values = [rnd(n, hk, self.dv, dtype=dtype) for n in kv]
        self.qo_indptr = torch.tensor([sum(qo[:i]) for i in range(len(qo) + 1)], dtype=index, device=DEV)
        self.kv_len = torch.tensor(kv, dtype=index, device=DEV)
        self.alibi = torch.rand(hq, device=DEV) * 0.2
        self.sinks = torch.randn(hq, device=DEV)
        if table == "ragged":
            self.k = torch.cat(self.keys + [rnd(1, hk, d, dtype=dtype) * float("nan")])
            self.v = torch.cat(self.values + [rnd(1, hk, self.dv, dtype=dtype) * float("nan")])
            self.kv_table = dict(indptr=torch.tensor([sum(kv[:i]) for i in range(len(kv) + 1)], dtype=index, device=DEV))
            return
        counts = [-(-n // page) for n in kv]
        pool = sum(counts) + 2
        perm = torch.randperm(pool, device=DEV)[:max(1, sum(counts))]
        shape = (pool, page, hk) if layout == "NHD" else (pool, hk, page)
        self.k, self.v = (torch.full((*shape, x), float("nan"), device=DEV, dtype=dtype) for x in (d, self.dv))
        if layout == "HND":
            self.k, self.v = self.k.permute(0, 2, 1, 3), self.v.permute(0, 2, 1, 3)
        wide = torch.full((len(kv), max(counts + [1]) + 3), 2**30, dtype=index, device=DEV)  # past the length: never read
        at, csr = 0, []
        for r, count in enumerate(counts):
            pages = perm[at:at + count]
            at += count
            wide[r, :count] = pages.to(index)
            csr.append(pages)
            token = torch.arange(kv[r], device=DEV)
            self.k[pages[token // page], token % page] = self.keys[r]
            self.v[pages[token // page], token % page] = self.values[r]
        if table == "2d":
            self.kv_table = dict(table=wide)
        else:
            indptr = torch.tensor([sum(counts[:i]) for i in range(len(counts) + 1)], dtype=index, device=DEV)
            self.kv_table = dict(table=torch.cat(csr).to(index) if sum(counts) else i32([0]).to(index), indptr=indptr)

    def mask(self):
        """-> (bits, byte offsets, boolean masks): about two thirds visible, the diagonal always."""
        bits, offsets, masks = [], [0], []
        for n, m in zip(self.qo, self.kv):
            visible = torch.rand(n, m, device=DEV) < 0.66
            masks.append(visible)
            flat = visible.flatten().to(torch.uint8)
            flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).view(-1, 8)
            bits.append((flat << torch.arange(8, device=DEV, dtype=torch.uint8)).sum(1, dtype=torch.uint8))
            offsets.append(offsets[-1] + len(bits[-1]))
        return torch.cat(bits + [bits[0].new_zeros(1)]), i32(offsets), masks

    def reference(self, masks=None):
        """-> (o, lse) in float64, (o) of a plain evaluation that rounds P to the inputs' precision."""
        outs, lses, plains = [], [], []
        group = self.hq // self.hk
        for r, (n, m) in enumerate(zip(self.qo, self.kv)):
            begin = sum(self.qo[:r])
            q = self.q[begin:begin + n].to(F64)
            k, v = (x[r].to(F64).repeat_interleave(group, 1) for x in (self.keys, self.values))
            pos, key = torch.arange(n, device=DEV)[:, None] + m - n, torch.arange(m, device=DEV)[None]
            if "rope" in self.features:
                q, k = rotate(q, pos[:, 0], self.rope_interleaved), rotate(k, key[0], self.rope_interleaved)
            scale = self.scale or self.d**-0.5
            s = torch.einsum("nhd,mhd->hnm", q, k) * scale
            if self.soft_cap:
                s = self.soft_cap * torch.tanh(s / self.soft_cap)
            if "alibi" in self.features:
                s = s + self.alibi.to(F64)[:, None, None] * (key - pos)[None]
            visible = torch.ones(n, m, dtype=torch.bool, device=DEV)
            if self.causal:
                visible &= key <= pos
            if self.window >= 0:
                visible &= key >= pos - self.window
            if masks is not None:
                visible &= masks[r]
            if "no_softmax" in self.features:
                p = torch.where(visible, s, 0.0)
                outs.append(torch.einsum("hnm,mhd->nhd", p, v))
                plains.append(torch.einsum("hnm,mhd->nhd", p.to(self.dtype).to(F32), v.to(F32)))
                lses.append(torch.zeros(n, self.hq, device=DEV, dtype=F64))
                continue
            s = torch.where(visible, s, -math.inf)
            extra = self.sinks.to(F64)[:, None].expand(-1, n) if "sinks" in self.features else None
            top = s.amax(-1) if m else torch.full((self.hq, n), -math.inf, device=DEV, dtype=F64)
            top = torch.maximum(top, extra) if extra is not None else top
            safe = torch.where(torch.isinf(top), 0.0, top)
            p = torch.exp(s - safe[..., None])
            total = p.sum(-1) + (torch.exp(extra - safe) if extra is not None else 0)
            lse = torch.where(total > 0, safe + torch.log(total), -math.inf)
            norm = torch.where(total > 0, 1 / total, 0.0)
            outs.append((torch.einsum("hnm,mhd->hnd", p, v) * norm[..., None]).transpose(0, 1))
            rounded = torch.einsum("hnm,mhd->hnd", p.to(self.dtype).to(F32), v.to(F32)) * norm[..., None].to(F32)
            plains.append(rounded.transpose(0, 1))
            lses.append(lse.transpose(0, 1))
        return torch.cat(outs), torch.cat(lses), torch.cat(plains).to(self.o_dtype)

    def limits(self, levels=1):
        return dict(max_requests=max(1, len(self.qo)), max_rows=max(1, sum(self.qo)), max_qo_len=max(self.qo + [1]),
                    max_kv_len=self.max_kv, num_levels=levels, num_groups=1, num_sms=self.num_sms,
                    groups=[dict(num_qo_heads=self.hq, num_kv_heads=self.hk, causal=int(self.causal), window_left=self.window)])

    def spec(self, f):
        names = {BF16: "BF16", F16: "F16", F32: "F32"}
        features = sum(f.constant("ATTENTION_" + name.upper()) for name in self.features)
        return dict(q_dtype=f.constant(names[self.dtype]), kv_dtype=f.constant(names[self.dtype]),
                    o_dtype=f.constant(names[self.o_dtype]), head_dim_qk=self.d, head_dim_vo=self.dv, features=features,
                    batch_invariant=self.invariant)

    def handle(self, env, levels=1):
        return capi.Attention(env.f, env.ctx, self.spec(env.f), self.limits(levels),
                              lambda n: torch.zeros(max(256, n), dtype=torch.uint8, device=DEV), stream())

    def lengths(self, env):
        return env.f.new("attention_lengths", num_levels=1, levels=[dict(qo_indptr=self.qo_indptr, kv_len=self.kv_len)])

    def tensors(self, env, out, lse, mask=None, tables=None):
        extra = {}
        if "alibi" in self.features:
            extra["alibi_slopes"] = self.alibi
        if "sinks" in self.features:
            extra["sinks"] = self.sinks
        if mask is not None:
            extra.update(mask=mask[0], mask_indptr=mask[1])
        if "rope" in self.features:
            extra["rope"] = dict(interleaved=self.rope_interleaved)
        return env.f.new("attention_tensors", page_size=self.page, q=self.q, k=self.k, v=self.v, o=out, lse=lse,
                         sm_scale=self.scale or 0.0, logits_soft_cap=self.soft_cap, kv=tables or [self.kv_table], **extra)

    def outputs(self):
        rows = sum(self.qo)
        out = torch.full((rows + 2, self.hq, self.dv), float("nan"), device=DEV, dtype=self.o_dtype)
        lse = torch.full((rows + 2, self.hq), float("nan"), device=DEV)
        return out, lse

    def run(self, env, mask=None):
        handle = self.handle(env)
        handle.plan(self.lengths(env), stream())
        out, lse = self.outputs()
        rows = sum(self.qo)
        handle.run(self.tensors(env, out[:rows], lse[:rows], mask), stream())
        torch.cuda.synchronize()
        expect(torch.isnan(out[rows:].float()).all() and torch.isnan(lse[rows:]).all(), "wrote past the last row")
        return out[:rows], lse[:rows]


def rotate(x, positions, interleaved):
    d = x.shape[-1]
    angle = positions.to(F64)[:, None] * 10000.0 ** (-torch.arange(d // 2, device=DEV, dtype=F64) * 2 / d)
    cos, sin = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :d // 2], x[..., d // 2:])
    a, b = a * cos - b * sin, b * cos + a * sin
    return torch.stack([a, b], -1).flatten(-2) if interleaved else torch.cat([a, b], -1)


MIXED = dict(qo=[1, 0, 7, 1, 130, 1], kv=[1, 5, 7, 333, 130, 0])
ATTENTION = {
    "decode 16": dict(qo=[1] * 5, kv=[1, 15, 16, 17, 700]),
    "decode long": dict(qo=[1], kv=[20000]),
    "decode uneven": dict(qo=[1] * 9, kv=[9000, 64, 64, 1, 0, 63, 65, 128, 4000], hq=32, hk=8),
    "prefill 512": dict(qo=[512, 512], kv=[512, 512]),
    "append": dict(qo=[65, 33], kv=[500, 33]),
    "mixed": MIXED, "mixed full": dict(MIXED, causal=False), "empty batch": dict(qo=[0], kv=[0]),
    "more rows than keys": dict(qo=[9, 3], kv=[4, 0]),
    "f16": dict(MIXED, dtype=F16), "f32 out": dict(MIXED, o_dtype=F32),
    **{f"d{d}": dict(MIXED, d=d) for d in (8, 40, 64, 80, 96, 192, 256)},
    "d192 dv128": dict(MIXED, d=192, dv=128), "d64 dv256": dict(MIXED, d=64, dv=256),
    **{f"group {g}": dict(MIXED, hq=2 * g, hk=2) for g in (1, 2, 3, 5, 7, 8, 16, 64)}, "mqa 128": dict(MIXED, hq=128, hk=1, d=64),
    **{f"page {p}": dict(MIXED, page=p) for p in (1, 2, 3, 8, 64, 256)},
    "hnd": dict(MIXED, layout="HND"), "csr": dict(MIXED, table="csr"), "i64": dict(MIXED, index=torch.int64),
    "csr i64": dict(MIXED, table="csr", index=torch.int64), "ragged": dict(MIXED, table="ragged"),
    "window 0": dict(MIXED, window=0), "window 63": dict(MIXED, window=63), "window 100 full": dict(MIXED, window=100, causal=False),
    **{name: dict(MIXED, features=(name,)) for name in ("soft_cap", "alibi", "sinks", "rope", "no_softmax")},
    "rope interleaved": dict(MIXED, features=("rope",), rope_interleaved=1),
    "all features": dict(MIXED, features=("soft_cap", "alibi", "sinks", "rope"), window=50),
    "few sms": dict(MIXED, num_sms=3), "large logits": dict(MIXED, scale=30.0),
    "invariant": dict(MIXED, invariant=1), "invariant long": dict(qo=[1, 3], kv=[20000, 5000], invariant=1),
    "invariant d64 window": dict(MIXED, invariant=1, d=64, window=70),
}


@check("attention", cases=ATTENTION)
def attention_case(env, **case):
    c = Case(**case)
    out, lse = c.run(env)
    want, want_lse, plain = c.reference()
    close(out, want, plain, "o", 2e-3 if c.o_dtype != F32 else 1e-3)
    if "no_softmax" not in c.features:
        close(lse, want_lse, want_lse.to(F32), "lse", 2e-5)
    again, lse_again = c.run(env)
    same_bits(out, again, "o differs from run to run")
    same_bits(lse, lse_again, "lse differs from run to run")


@check("attention custom_mask", cases={"causal": {}, "full": dict(causal=False), "d64": dict(d=64)})
def attention_mask(env, **case):
    c = Case(**MIXED, features=("custom_mask",), **case)
    bits, offsets, masks = c.mask()
    out, lse = c.run(env, (bits, offsets))
    want, want_lse, plain = c.reference(masks)
    close(out, want, plain, "o", 2e-3)
    close(lse, want_lse, want_lse.to(F32), "lse", 2e-5)


@check("attention random shapes", cases={str(seed): dict(seed=seed) for seed in range(24)})
def attention_random(env, seed):
    r = random.Random(seed)
    n = r.randint(1, 12)
    kv = [r.choice([0, 1, r.randint(1, 64), r.randint(1, 2000)]) for _ in range(n)]
    qo = [r.choice([0, 1, 1, r.randint(0, 200)]) for _ in range(n)]
    hk = r.choice([1, 2, 4])
    attention_case(env, qo=qo, kv=kv, hk=hk, hq=hk * r.randint(1, 9), d=r.choice([64, 128, 8 * r.randint(1, 32)]),
                   dtype=r.choice([BF16, F16]), page=r.choice([1, 4, 16, 32]), causal=r.random() < 0.7,
                   window=r.choice([-1, -1, r.randint(0, 300)]), layout=r.choice(["NHD", "HND"]), invariant=r.randint(0, 1),
                   table=r.choice(["2d", "csr"]), seed=seed, num_sms=r.choice([0, 0, 5, 17]))


@check("attention invariant: neighbours, chunks, prefix", cases={"d128": {}, "d64": dict(d=64)})
def attention_invariant(env, d=128):
    whole = Case([700], [900], hq=8, hk=2, d=d, invariant=1)
    out, lse = whole.run(env)

    def part(qo_begin, qo_end, neighbours):
        c = Case([qo_end - qo_begin], [200 + qo_end], hq=8, hk=2, d=d, invariant=1)
        c.q, c.k, c.v, c.kv_table = whole.q[qo_begin:qo_end].contiguous(), whole.k, whole.v, whole.kv_table
        if neighbours:
            table = whole.kv_table["table"]
            c.qo, c.kv = [qo_end - qo_begin, 5, 1], [200 + qo_end, 300, 900]
            c.q = torch.cat([c.q, rnd(6, 8, d)])
            c.qo_indptr = i32([0, c.qo[0], c.qo[0] + 5, c.qo[0] + 6])
            c.kv_len, c.kv_table, c.max_kv = i32(c.kv), dict(table=table.repeat(3, 1)), 900
        return [x[:qo_end - qo_begin] for x in c.run(env)]
    for size in (1, 63, 64, 65):
        for neighbours in (False, True):
            for begin in (0, 320, 700 - size):
                o_part, lse_part = part(begin, begin + size, neighbours)
                same_bits(o_part.contiguous(), out[begin:begin + size].contiguous(), f"rows {begin}+{size}, neighbours {neighbours}: o")
                same_bits(lse_part.contiguous(), lse[begin:begin + size].contiguous(), f"rows {begin}+{size}, neighbours {neighbours}: lse")


@check("attention shared prefix", cases={"512+own": {}, "short": dict(shared=100), "invariant": dict(invariant=1), "32/8 2048": dict(shared=2048, hq=32, hk=8)})
def attention_prefix(env, shared=512, invariant=0, hq=8, hk=2):
    own = [1, 16, 17, 300]
    shared -= shared % 16
    c = Case([1, 1, 1, 20], [shared + n if n != 300 else shared + 300 for n in own], hq=hq, hk=hk, invariant=invariant)
    table = c.kv_table["table"]
    pages = shared // 16
    for r in range(1, 4):
        table[r, :pages] = table[0, :pages]
        c.keys[r] = torch.cat([c.keys[0][:shared], c.keys[r][shared:]])
        c.values[r] = torch.cat([c.values[0][:shared], c.values[r][shared:]])
    flat, flat_lse = c.run(env)
    want, want_lse, plain = c.reference()
    close(flat, want, plain, "flat o", 2e-3)
    handle = c.handle(env, levels=2)
    lengths = env.f.new("attention_lengths", num_levels=2, levels=[
        dict(qo_indptr=i32([0, sum(c.qo)]), kv_len=i32([shared])), dict(qo_indptr=c.qo_indptr, kv_len=i32(own))])
    handle.plan(lengths, stream())
    out, lse = c.outputs()
    rows = sum(c.qo)
    tables = [dict(table=table[:1, :pages].contiguous()), dict(table=table[:, pages:].contiguous())]
    handle.run(c.tensors(env, out[:rows], lse[:rows], tables=tables), stream())
    torch.cuda.synchronize()
    close(out[:rows], want, plain, "o", 2e-3)
    close(lse[:rows], want_lse, want_lse.to(F32), "lse", 2e-5)
    if invariant:
        same_bits(out[:rows], flat, "the shared prefix changes bits")


@check("attention faults: one bad request harms no other", cases={k: dict(bad=k) for k in ("too long", "negative", "decreasing")})
def attention_fault(env, bad):
    good = Case([1, 2, 1], [300, 40, 77], max_kv=400)
    want, want_lse = good.run(env)
    lengths, indptr = good.kv_len.clone(), good.qo_indptr.clone()
    if bad == "too long":
        lengths[1] = 100000
    elif bad == "negative":
        lengths[1] = -5
    else:
        indptr[1] = 3  # request 1 would run backwards
    good.kv_len, good.qo_indptr = lengths, indptr
    handle = good.handle(env)
    handle.plan(good.lengths(env), stream())
    out, lse = good.outputs()
    handle.run(good.tensors(env, out[:4], lse[:4]), stream())
    torch.cuda.synchronize()
    record = handle.plan_mem[:32].cpu().view(torch.int32)
    expect(record[0].item() != 0, "no fault in the status record")
    if bad != "decreasing":
        expect(record[1].item() == 1, f"the record names request {record[1].item()}")
        expect(torch.isnan(out[1:3].float()).all(), "the bad request's rows must be NaN")
        same_bits(out[3:4].contiguous(), want[3:4].contiguous(), "request 2 changed")
        same_bits(out[:1].contiguous(), want[:1].contiguous(), "request 0 changed")


@check("graph: one capture of plan and 4 layers, 300 random batches", cases={"decode": {}, "invariant": dict(invariant=1)})
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
        c.k, c.v = k, v
        layers.append(c.tensors(env, o, None) if False else env.f.new("attention_tensors", page_size=page, q=q, k=k, v=v, o=o, kv=[dict(table=table)]))

    def step():
        handle.plan(lengths, stream())
        for layer in layers:
            handle.run(layer, stream())
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for i in range(300):
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


# ------------------------------------------------------------------------------------------------ the other ops
DTYPES = {"bf16": dict(dtype=BF16), "f16": dict(dtype=F16), "f32": dict(dtype=F32)}


@check("append_kv", cases={f"{layout} {name} page {page}": dict(layout=layout, page=page, **kw) for layout in ("NHD", "HND")
                           for name, kw in DTYPES.items() for page in (1, 16)})
def append(env, layout, page, dtype):
    torch.manual_seed(1)
    hk, d, dv, qo, kv = 3, 72, 40, [5, 0, 1, 20], [5, 3, 40, 23]
    counts = [-(-n // page) for n in kv]
    pool = sum(counts) + 1
    shape = (pool, page, hk) if layout == "NHD" else (pool, hk, page)
    perm, table, at = torch.randperm(pool, device=DEV), torch.full((4, max(counts)), -1, dtype=torch.int32, device=DEV), 0
    for r, count in enumerate(counts):
        table[r, :count] = perm[at:at + count].to(torch.int32)
        at += count
    k, v = rnd(sum(qo), hk, d, dtype=dtype), rnd(sum(qo), hk, dv, dtype=dtype)
    caches = [torch.full((*shape, x), 7.0, device=DEV, dtype=dtype) for x in (d, dv)]
    want = [c.clone() for c in caches]
    views = [c if layout == "NHD" else c.permute(0, 2, 1, 3) for c in caches]
    wants = [c if layout == "NHD" else c.permute(0, 2, 1, 3) for c in want]
    token, slots = 0, []
    for r in range(4):
        for i in range(qo[r]):
            p = kv[r] - qo[r] + i
            wants[0][table[r, p // page], p % page] = k[token]
            wants[1][table[r, p // page], p % page] = v[token]
            slots.append(int(table[r, p // page]) * page + p % page)
            token += 1
    ptr = i32([sum(qo[:i]) for i in range(5)])
    env.call("append_kv", k=k, v=v, k_cache=views[0], v_cache=views[1], qo_indptr=ptr, kv_len=i32(kv), table=dict(table=table))
    torch.cuda.synchronize()
    for got, exp in zip(caches, want):
        same_bits(got, exp, "by request")
    for c in caches:
        c.fill_(7.0)
    slots[2] = -1
    env.call("append_kv", k=k, v=v, k_cache=views[0], v_cache=views[1], slot_mapping=torch.tensor(slots, device=DEV))
    torch.cuda.synchronize()
    p = kv[0] - qo[0] + 2
    for w in wants:
        w[table[0, p // page], p % page] = 7.0
    for got, exp in zip(caches, want):
        same_bits(got, exp, "by slot")


@check("merge_states", cases=DTYPES)
def merge(env, dtype):
    part_o, part_lse = rnd(5, 37, 6, 72, dtype=dtype), torch.randn(5, 37, 6, device=DEV) * 3
    part_lse[:, 3], part_lse[1:, 4] = -math.inf, -math.inf
    out, lse = torch.empty(37, 6, 72, device=DEV, dtype=dtype), torch.empty(37, 6, device=DEV)
    env.call("merge_states", part_o=part_o, part_lse=part_lse, o=out, lse=lse)
    torch.cuda.synchronize()
    want_lse = torch.logsumexp(part_lse.to(F64), 0)
    weight = torch.where(torch.isinf(part_lse), 0.0, torch.exp(part_lse.to(F64) - want_lse))
    want = torch.einsum("prh,prhd->rhd", weight.nan_to_num(0), part_o.to(F64))
    close(out, want, want.to(dtype), "o", 1e-5)
    close(lse, want_lse, want_lse.to(F32), "lse")
    a, la, b, lb = (x.contiguous() for x in (part_o[0], part_lse[0], part_o[1], part_lse[1]))
    env.call("merge_state", o_a=a, lse_a=la, o_b=b, lse_b=lb, o=out, lse=lse)
    torch.cuda.synchronize()
    want_lse = torch.logaddexp(la.to(F64), lb.to(F64))
    w = [torch.where(torch.isinf(x), 0.0, torch.exp(x.to(F64) - want_lse)).nan_to_num(0)[..., None] for x in (la, lb)]
    want = w[0] * a.to(F64) + w[1] * b.to(F64)
    close(out, want, want.to(dtype), "merge_state o", 1e-5)


@check("rms_norm", cases={f"{t}x{h} {n}": dict(t=t, h=h, **kw) for t, h in ((1, 4096), (37, 576), (3, 8), (513, 1000), (5, 16384)) for n, kw in DTYPES.items()})
def norms(env, t, h, dtype):
    wide, weight = rnd(t, h + 8, dtype=dtype), rnd(h, dtype=dtype)
    x, res = wide[:, :h], rnd(t, h, dtype=dtype)

    def ref(x, w, offset):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * (w + offset)
    out = torch.empty(t, h, device=DEV, dtype=dtype)
    for offset in (0.0, 1.0):
        env.call("rms_norm", x=x, weight=weight, out=out, eps=1e-6, weight_offset=offset)
        want = ref(x.to(F64), weight.to(F64), offset)
        close(out, want, want.to(dtype), f"offset {offset}", 1e-5)
    summed = (x.to(F32) + res.to(F32))
    got_res = res.clone()
    env.call("rms_norm", x=x, weight=weight, residual=got_res, out=out, eps=1e-6)
    same_bits(got_res, summed.to(dtype), "residual")
    want = ref(summed.to(F64), weight.to(F64), 0)
    close(out, want, ref(summed.to(dtype).to(F64), weight.to(F64), 0).to(dtype), "add", 1e-2 if dtype != F32 else 1e-5)
    bias = rnd(h, dtype=dtype)
    env.call("layer_norm", x=x, weight=weight, bias=bias, out=out, eps=1e-5)
    want = torch.nn.functional.layer_norm(x.to(F64), (h,), weight.to(F64), bias.to(F64), 1e-5)
    close(out, want, want.to(dtype), "layer_norm", 2e-5)
    torch.cuda.synchronize()


@check("act_and_mul", cases={f"{a} {n}": dict(activation=i, **kw) for i, a in enumerate(("silu", "gelu", "gelu_tanh")) for n, kw in DTYPES.items()})
def activation(env, activation, dtype):
    for t, d in ((1, 11008), (33, 100), (7, 3)):
        x, out = rnd(t, 2 * d, dtype=dtype), torch.empty(t, d, device=DEV, dtype=dtype)
        env.call("act_and_mul", x=x, out=out, activation=activation)
        gate, up = x[:, :d].to(F64), x[:, d:].to(F64)
        f = [torch.nn.functional.silu, torch.nn.functional.gelu, lambda y: torch.nn.functional.gelu(y, approximate="tanh")][activation]
        want = f(gate) * up
        close(out, want, want.to(dtype), f"{t}x{d}", 2e-6)


@check("rope", cases={f"{n} interleaved {i} rotary {r}": dict(interleaved=i, rotary=r, **kw) for i in (0, 1) for r in (0, 64) for n, kw in DTYPES.items()})
def rope(env, interleaved, rotary, dtype):
    t, d = 65, 96
    q, k = rnd(t, 5, d, dtype=dtype), rnd(t, 2, d, dtype=dtype)
    pos = torch.randint(0, 5000, (t,), device=DEV, dtype=torch.int32)
    n = rotary or d
    wants = [torch.cat([rotate(x[..., :n].to(F64), pos, interleaved), x[..., n:].to(F64)], -1) for x in (q, k)]
    env.call("rope", q=q, k=k, positions=pos, params=dict(interleaved=interleaved, rotary_dim=rotary))
    torch.cuda.synchronize()
    for name, got, want in zip("qk", (q, k), wants):
        close(got, want, want.to(dtype), name, 5e-6)


def sampling_inputs(rows, vocab, kind):
    x = torch.randn(rows, vocab, device=DEV)
    return {"flat": x * 3, "peaked": x * 8, "ties": torch.round(x * 2)}[kind]


FILTERS = {"none": {}, "top_k 50": dict(top_k=50), "top_k 1": dict(top_k=1), "top_p .9": dict(top_p=0.9), "top_p .1": dict(top_p=0.1),
           "min_p .05": dict(min_p=0.05), "joint": dict(top_k=40, top_p=0.8, order=1), "sequential": dict(top_k=40, top_p=0.8, min_p=0.01),
           "cold": dict(temperature=0.3, top_p=0.95), "argmax": dict(temperature=0.0)}


@check("sample: the CPU's words", cases={f"{kind} {name} {rows}x{vocab}": dict(kind=kind, rows=rows, vocab=vocab, params=params)
                                        for kind in ("flat", "peaked", "ties") for name, params in FILTERS.items()
                                        for rows, vocab in ((2000, 256), (3, 128256))})
def sample(env, kind, rows, vocab, params):
    torch.manual_seed(9)
    x = sampling_inputs(rows, vocab, kind)
    filt = dict(dict(temperature=1.0, top_p=1.0), **params)
    offsets = torch.arange(rows, device=DEV)
    tokens = torch.full((rows,), -7, dtype=torch.int32, device=DEV)
    logprob = torch.empty(rows, device=DEV)
    env.call("sample", input=x, tokens=tokens, logprob=logprob, filter=filt, seed=42, offsets=offsets)
    torch.cuda.synchronize()
    cpu_tokens, cpu_logprob = torch.full((rows,), -8, dtype=torch.int32), torch.empty(rows)
    env.call_cpu("sample", input=x.cpu(), tokens=cpu_tokens, logprob=cpu_logprob, filter=filt, seed=42, offsets=offsets.cpu())
    differ = (tokens.cpu() != cpu_tokens).sum().item()
    expect(differ == 0, f"{differ} of {rows} words differ from the CPU's")
    expect(tokens.min() >= 0, "a row was refused")
    temperature = filt["temperature"] or 1.0
    want = torch.log_softmax(x.to(F64) / temperature, -1).gather(1, tokens.long()[:, None])[:, 0]
    close(logprob, want, want.to(F32), "logprob", 1e-4)


@check("softmax, argmax, top_k, filter", cases={f"{r}x{v} {n}": dict(rows=r, vocab=v, **kw) for r, v in ((1, 7), (65, 1000), (4, 128256)) for n, kw in DTYPES.items()})
def distributions(env, rows, vocab, dtype):
    x = sampling_inputs(rows, vocab, "flat").to(dtype)
    probs = torch.empty(rows, vocab, device=DEV)
    env.call("softmax", logits=x, probs=probs, temperature=0.8)
    want = torch.softmax(x.to(F64) / float(torch.tensor(0.8)), -1)
    close(probs, want, want.to(F32), "softmax", 1e-6)
    index = torch.empty(rows, dtype=torch.int32, device=DEV)
    env.call("argmax", x=x, index=index)
    expect(torch.equal(x.gather(1, index.long()[:, None])[:, 0], x.amax(1)), "argmax")
    k = min(50, vocab)
    values, indices = torch.empty(rows, k, device=DEV, dtype=dtype), torch.empty(rows, k, dtype=torch.int32, device=DEV)
    env.call("top_k", x=x, values=values, indices=indices)
    order = torch.sort(x.to(F32), dim=1, descending=True, stable=True)
    expect(torch.equal(indices.long(), order.indices[:, :k]), "top_k indices (stable order)")
    expect(torch.equal(values, x.gather(1, order.indices[:, :k])), "top_k values")
    got, cpu = torch.empty(rows, vocab, device=DEV), torch.empty(rows, vocab)
    filt = dict(temperature=1.0, top_k=20, top_p=0.9)
    env.call("filter", input=x, output=got, filter=filt)
    env.call_cpu("filter", input=x.cpu(), output=cpu, filter=filt)
    expect(torch.equal((got > 0).cpu(), cpu > 0), "filter keeps other words than the CPU")
    close(got.cpu(), cpu.to(F64), cpu, "filter", 1e-6)
    torch.cuda.synchronize()


# ------------------------------------------------------------------------------------------------ the call itself
@check("8 threads, 2 contexts")
def threads(env):
    other = env.f.context("cuda")
    errors = []

    def work(i):
        try:
            torch.cuda.set_device(0)
            with torch.cuda.stream(torch.cuda.Stream()):
                context = env.ctx if i % 2 else other
                x, weight = rnd(64, 4096), rnd(4096)
                out, want = torch.empty_like(x), torch.empty_like(x)
                env.f.call("rms_norm", context, env.f.new("rms_norm_args", x=x, weight=weight, out=want, eps=1e-6), stream())
                for _ in range(50):
                    env.f.call("rms_norm", context, env.f.new("rms_norm_args", x=x, weight=weight, out=out, eps=1e-6), stream())
                torch.cuda.current_stream().synchronize()
                same_bits(out, want, f"thread {i}")
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [w.start() for w in workers]
    [w.join() for w in workers]
    expect(not errors, "; ".join(errors[:3]))


@check("fork after use is refused in the child")
def fork(env):
    x, weight = rnd(4, 64), rnd(64)
    env.call("rms_norm", x=x, weight=weight, out=x, eps=1e-6)
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


@check("host tensors are refused during capture, by name")
def capture(env):
    c = Case([1], [40])
    handle = c.handle(env)
    host = env.f.new("attention_lengths", num_levels=1, levels=[dict(qo_indptr=c.qo_indptr.cpu(), kv_len=c.kv_len.cpu())])
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", required=True)
    parser.add_argument("--header", required=True)
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--budget", type=float, default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.zeros(1, device=DEV)
    env = Env(args.lib, args.header)
    done = {}
    if args.resume and os.path.exists(args.out):
        done = {c["check"]: c for c in json.load(open(args.out))["checks"] if c["result"] == "passed"}
    started, results = time.time(), list(done.values())
    for name, function, kwargs in CHECKS:
        if name in done or not name.startswith(args.only):
            continue
        if args.budget and time.time() - started > args.budget:
            results.append(dict(check=name, result="skipped", why="out of time"))
            continue
        begin = time.time()
        try:
            function(env, **kwargs)
            row = dict(check=name, result="passed")
        except capi.FulmenError as error:
            unsupported = any(word in str(error) for word in ("unsupported", "on cuda", "no CUDA"))
            row = dict(check=name, result="unsupported" if unsupported else "failed", why=str(error)[:600])
        except Exception as error:
            row = dict(check=name, result="failed", why=f"{type(error).__name__}: {str(error)[:600]}",
                       trace=traceback.format_exc(limit=-2)[-500:])
            if "CUDA error" in str(error):
                results.append(row)
                print(f"FAILED {name}: {row['why']}: the device is lost, stopping", flush=True)
                break
        row["seconds"] = round(time.time() - begin, 3)
        results.append(row)
        if row["result"] != "passed":
            print(f"{row['result'].upper()} {name}: {row.get('why', '')}", flush=True)
        write(args.out, results)
    counts = write(args.out, results)
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['unsupported'] + counts['skipped']} skipped")
    sys.exit(1 if counts["failed"] else 0)


def write(path, results):
    counts = {k: sum(r["result"] == k for r in results) for k in ("passed", "failed", "unsupported", "skipped")}
    with open(path, "w") as file:
        json.dump(dict(gpu=torch.cuda.get_device_name(), counts=counts, checks=results), file, indent=1)
    return counts


if __name__ == "__main__":
    main()
