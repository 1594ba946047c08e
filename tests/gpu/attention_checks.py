"""Attention: case table, random shapes, masks, prefixes, invariance, faults."""
import ctypes
import math
import random
import struct

import torch
from harness import BF16, DEV, F16, F32, F64, capi, check, close, expect, i32, rnd, same_bits, stream


class Case:
    """A batch: ragged queries against paged (or ragged) keys; unwritten slots are NaN."""

    def __init__(self, qo, kv, hq=8, hk=2, d=128, dv=None, dtype=BF16, page=16, causal=True, window=-1, features=(),
                 layout="NHD", table="2d", index=torch.int32, invariant=0, seed=1, scale=None, o_dtype=None, max_kv=None,
                 num_sms=0, soft_cap=20.0, rope_interleaved=0, rotary_dim=0, odd=False, o_scale=0.0, lse_base2=0):
        torch.manual_seed(seed)
        self.__dict__.update(qo=qo, kv=kv, hq=hq, hk=hk, d=d, dv=dv or d, dtype=dtype, page=page, causal=causal, window=window,
                             features=features, table_form=table, invariant=invariant, scale=scale, o_dtype=o_dtype or dtype,
                             max_kv=max_kv or max(kv + [1]), num_sms=num_sms, soft_cap=soft_cap if "soft_cap" in features else 0.0,
                             rope_interleaved=rope_interleaved, rotary_dim=rotary_dim or d, odd=odd, o_scale=o_scale,
                             lse_base2=lse_base2)
        rows = sum(qo)
        self.q = rnd(rows, hq, d, dtype=dtype)
        self.keys = [rnd(n, hk, d, dtype=dtype) for n in kv]
        self.values = [rnd(n, hk, self.dv, dtype=dtype) for n in kv]
        self.qo_indptr = torch.tensor([sum(qo[:i]) for i in range(len(qo) + 1)], dtype=index, device=DEV)
        self.kv_len = torch.tensor(kv, dtype=index, device=DEV)
        self.alibi = torch.rand(hq, device=DEV) * 0.2
        self.sinks = torch.randn(hq, device=DEV)
        self.masks = [torch.rand(n, m, device=DEV) < 0.66 for n, m in zip(qo, kv)] if "custom_mask" in features else None
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
        if odd:  # addresses and strides of whole elements only
            self.q, self.k, self.v = (self.at_odd_places(x) for x in (self.q, self.k, self.v))

    @staticmethod
    def at_odd_places(x):
        wide = torch.full((*x.shape[:-1], x.shape[-1] + 3), float("nan"), device=DEV, dtype=x.dtype)
        wide[..., 1:-2] = x
        return wide[..., 1:-2]

    def mask_bits(self):
        """-> (bits, byte offsets) of self.masks."""
        bits, offsets = [], [0]
        for visible in self.masks:
            flat = visible.flatten().to(torch.uint8)
            flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).view(-1, 8)
            bits.append((flat << torch.arange(8, device=DEV, dtype=torch.uint8)).sum(1, dtype=torch.uint8))
            offsets.append(offsets[-1] + len(bits[-1]))
        return torch.cat(bits + [bits[0].new_zeros(1)]), i32(offsets)

    def reference(self):
        """-> (o, lse) in float64, (o, lse) of a plain evaluation that rounds P, and rotated q and k, to the inputs' precision."""
        exact = self.evaluate(lambda x: x, lambda p: p)
        plain = self.evaluate(lambda x: x.to(self.dtype).to(F64), lambda p: p.to(self.dtype).to(F64))
        return *exact, plain[0].to(F32).to(self.o_dtype), plain[1].to(F32)

    def changed(self, s, key, pos):
        """Logits [heads, rows, keys] as a user's variant leaves them."""
        return s

    def evaluate(self, rounded, rounded_p):
        outs, lses = [], []
        group = self.hq // self.hk
        for r, (n, m) in enumerate(zip(self.qo, self.kv)):
            begin = sum(self.qo[:r])
            q = self.q[begin:begin + n].to(F64)
            k, v = (x[r].to(F64).repeat_interleave(group, 1) for x in (self.keys, self.values))
            pos, key = torch.arange(n, device=DEV)[:, None] + m - n, torch.arange(m, device=DEV)[None]
            if "rope" in self.features:
                turn = [self.rope_interleaved, self.rotary_dim]
                q, k = rounded(rotate(q, pos[:, 0], *turn)), rounded(rotate(k, key[0], *turn))
            scale = self.scale or self.d**-0.5
            s = torch.einsum("nhd,mhd->hnm", q, k) * scale
            if self.soft_cap:
                s = self.soft_cap * torch.tanh(s / self.soft_cap)
            if "alibi" in self.features:
                s = s + self.alibi.to(F64)[:, None, None] * (key - pos)[None]
            s = self.changed(s, key, pos)
            visible = torch.ones(n, m, dtype=torch.bool, device=DEV)
            if self.causal:
                visible &= key <= pos
            if self.window >= 0:
                visible &= key >= pos - self.window
            if self.masks is not None:
                visible &= self.masks[r]
            if "no_softmax" in self.features:
                outs.append(torch.einsum("hnm,mhd->nhd", rounded_p(torch.where(visible, s, 0.0)), v))
                lses.append(torch.zeros(n, self.hq, device=DEV, dtype=F64))
                continue
            s = torch.where(visible, s, -math.inf)
            extra = None
            if "sinks" in self.features:  # a row that sees no key stays empty
                extra = torch.where(visible.any(-1), self.sinks.to(F64)[:, None], -math.inf)
            top = s.amax(-1) if m else torch.full((self.hq, n), -math.inf, device=DEV, dtype=F64)
            top = torch.maximum(top, extra) if extra is not None else top
            safe = torch.where(torch.isinf(top), 0.0, top)
            p = torch.exp(s - safe[..., None])
            total = p.sum(-1) + (torch.exp(extra - safe) if extra is not None else 0)
            lse = torch.where(total > 0, safe + torch.log(total), -math.inf)
            norm = torch.where(total > 0, 1 / total, 0.0)
            outs.append((torch.einsum("hnm,mhd->hnd", rounded_p(p), v) * norm[..., None]).transpose(0, 1))
            lses.append(lse.transpose(0, 1))
        return torch.cat(outs), torch.cat(lses)

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

    def tensors(self, env, out, lse, tables=None):
        extra = {}
        if "alibi" in self.features:
            extra["alibi_slopes"] = self.alibi
        if "sinks" in self.features:
            extra["sinks"] = self.sinks
        if self.masks is not None:
            self.bits = self.mask_bits()  # kept while the call is in flight
            extra["mask"], extra["mask_indptr"] = self.bits
        if "rope" in self.features:
            extra["rope"] = dict(interleaved=self.rope_interleaved, rotary_dim=self.rotary_dim)
        return env.f.new("attention_tensors", page_size=self.page, q=self.q, k=self.k, v=self.v, o=out, lse=lse,
                         sm_scale=self.scale or 0.0, logits_soft_cap=self.soft_cap, o_scale=self.o_scale,
                         lse_base2=self.lse_base2, kv=tables or [self.kv_table], **extra)

    def outputs(self):
        rows = sum(self.qo)
        out = torch.full((rows + 2, self.hq, self.dv), float("nan"), device=DEV, dtype=self.o_dtype)
        if self.odd:
            out = self.at_odd_places(out)
        lse = torch.full((rows + 2, self.hq), float("nan"), device=DEV)
        return out, lse

    def run(self, env, repeats=1):
        """plan and run, `repeats` times over with the same bits -> (o, lse)."""
        handle, rows = self.handle(env), sum(self.qo)
        lengths, first = self.lengths(env), None
        for _ in range(repeats):
            out, lse = self.outputs()
            handle.plan(lengths, stream())
            handle.run(self.tensors(env, out[:rows], lse[:rows]), stream())
            torch.cuda.synchronize()
            first = first or (out, lse)
            same_bits(out, first[0], "o differs from run to run")
            same_bits(lse, first[1], "lse differs from run to run")
        out, lse = first
        expect(torch.isnan(out[rows:].float()).all() and torch.isnan(lse[rows:]).all(), "wrote past the last row")
        if self.odd:
            gaps = out.as_strided((rows, self.hq, 3), out.stride(), out.storage_offset() + self.dv)[:, :, :2]
            expect(torch.isnan(gaps.float()).all(), "wrote between the rows")
        return out[:rows], lse[:rows]


def rotate(x, positions, interleaved, rotary_dim=None):
    d = rotary_dim or x.shape[-1]
    x, rest = x[..., :d], x[..., d:]
    angle = positions.to(F64)[:, None] * 10000.0 ** (-torch.arange(d // 2, device=DEV, dtype=F64) * 2 / d)
    cos, sin = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :d // 2], x[..., d // 2:])
    a, b = a * cos - b * sin, b * cos + a * sin
    return torch.cat([torch.stack([a, b], -1).flatten(-2) if interleaved else torch.cat([a, b], -1), rest], -1)


MIXED = dict(qo=[1, 0, 7, 1, 130, 1], kv=[1, 5, 7, 333, 130, 0])
DECODE = dict(qo=[1, 1, 2, 1, 0, 1], kv=[1, 333, 64, 9000, 5, 0])
FEATURES = ("soft_cap", "alibi", "sinks", "rope", "custom_mask", "no_softmax")
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
    **{name: dict(MIXED, features=(name,)) for name in FEATURES},
    **{name + " decode": dict(DECODE, features=(name,)) for name in FEATURES},
    **{name + " d64": dict(MIXED, features=(name,), d=64) for name in FEATURES},
    "custom_mask full": dict(MIXED, features=("custom_mask",), causal=False),
    "soft_cap window d256": dict(MIXED, features=("soft_cap",), window=100, d=256),
    "soft_cap window d256 decode": dict(DECODE, features=("soft_cap",), window=100, d=256),
    "rope interleaved": dict(MIXED, features=("rope",), rope_interleaved=1),
    "rope part": dict(MIXED, features=("rope",), rotary_dim=22), "rope part decode": dict(DECODE, features=("rope",), rotary_dim=64),
    "rope d256 decode": dict(DECODE, features=("rope",), d=256),
    "all features": dict(MIXED, features=FEATURES[:5], window=50),
    "all features decode": dict(DECODE, features=FEATURES[:5], rope_interleaved=1),
    "all features f16 d64": dict(MIXED, features=FEATURES[:5], dtype=F16, d=64, o_dtype=F32),
    "all but softmax": dict(MIXED, features=FEATURES, d=64),
    "scale below 0": dict(MIXED, scale=-0.2), "scale below 0 decode": dict(DECODE, scale=-0.2),
    "odd strides": dict(MIXED, odd=True), "odd strides decode": dict(DECODE, odd=True), "odd strides d80": dict(MIXED, d=80, odd=True),
    "odd strides ragged": dict(MIXED, odd=True, table="ragged"), "odd strides f32 out": dict(MIXED, odd=True, o_dtype=F32),
    "odd strides all features": dict(MIXED, odd=True, features=FEATURES[:5], window=50),
    "scaled, base 2": dict(MIXED, o_scale=-0.375, lse_base2=1), "scaled, base 2 decode": dict(DECODE, o_scale=-0.375, lse_base2=1),
    "few sms": dict(MIXED, num_sms=3), "large logits": dict(MIXED, scale=30.0),
    "invariant": dict(MIXED, invariant=1), "invariant long": dict(qo=[1, 3], kv=[20000, 5000], invariant=1),
    "invariant d64 window": dict(MIXED, invariant=1, d=64, window=70),
}


@check("attention", cases=ATTENTION)
def attention_case(env, **case):
    c = Case(**case)
    out, lse = c.run(env, repeats=env.repeats)
    want, want_lse, plain, plain_lse = c.reference()
    if c.o_scale:
        want, plain = want * c.o_scale, plain * c.o_scale
    if c.lse_base2:
        want_lse, plain_lse = want_lse / math.log(2), plain_lse / math.log(2)
    close(out, want, plain, "o", 2e-3 if c.o_dtype != F32 else 1e-3)
    if "no_softmax" in c.features:
        expect(torch.isnan(lse).all(), "lse was written without a softmax")
    else:
        close(lse, want_lse, plain_lse, "lse", 2e-5)


FIRST_AND_LAST = b"""
struct FirstAndLast {
  struct Params { int first, last; float penalty; };
  static FULMEN_FN bool visible(const Params& p, const VariantAt& at) { return at.key < p.first || at.position - at.key < p.last; }
  static FULMEN_FN float logit(const Params& p, const VariantAt& at, float s) { return at.key < p.first ? s - p.penalty * at.qo_head : s; }
};"""


@check("attention variant from source", cases={"prefill": MIXED, "decode": DECODE})
def attention_user_variant(env, **case):
    first, last, penalty = 4, 70, 0.25
    params = ctypes.create_string_buffer(struct.pack("iif", first, last, penalty), 12)

    class WithVariant(Case):
        def spec(self, f):
            return dict(super().spec(f), variant_name=b"FirstAndLast", variant_source=FIRST_AND_LAST)

        def tensors(self, env, out, lse, tables=None):
            t = super().tensors(env, out, lse, tables)
            t.variant_params, t.variant_params_bytes = ctypes.addressof(params), 12
            return t

        def changed(self, s, key, pos):
            early = key < first
            s = s - torch.where(early, penalty, 0.0) * torch.arange(self.hq, device=DEV, dtype=F64)[:, None, None]
            return torch.where(early | (pos - key < last), s, -math.inf)
    c = WithVariant(**case)
    out, lse = c.run(env, repeats=env.repeats)
    want, want_lse, plain, plain_lse = c.reference()
    close(out, want, plain, "o", 2e-3)
    close(lse, want_lse, plain_lse, "lse", 2e-5)


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


@check("attention invariant: neighbours, chunks, prefix", cases={"d128": {}, "d64": dict(d=64), "d256": dict(d=256)})
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
    want, want_lse, plain, _ = c.reference()
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


@check("attention num_sms: part of the device", cases={str(n): dict(num_sms=n) for n in (1, 7, 66, 131)})
def attention_num_sms(env, num_sms):
    lens = dict(qo=[1] * 40 + [200], kv=[100 * i for i in range(40)] + [3000])
    attention_case(env, **lens, num_sms=num_sms)
    whole, part = Case(**lens).handle(env), Case(**lens, num_sms=num_sms).handle(env)
    expect(part.scratch_bytes <= whole.scratch_bytes, f"{part.scratch_bytes} bytes of scratch for {num_sms}, {whole.scratch_bytes} for all")


# Requests 0 to 4 have one row each but request 2, which has three. Each fault: what is written where, and whose rows
# become NaN: those of the requests that an entry bounds.
FAULTS = {
    "length beyond the limit": dict(kv_len={2: 100000}, bad=[2], code=2),
    "negative length": dict(kv_len={2: -5}, bad=[2], code=2),
    "decreasing rows": dict(qo_indptr={3: 1}, bad=[2, 3], code=1),
    "negative row": dict(qo_indptr={3: -7}, bad=[2, 3], code=1),
    "row beyond the limit": dict(qo_indptr={3: 1 << 30}, bad=[2, 3], code=1),
}


@check("attention faults: one bad request harms no other", cases=FAULTS)
def attention_fault(env, bad, code, kv_len=None, qo_indptr=None):
    """Eagerly and in a replayed graph; the graph is right again once the lengths are."""
    c = Case([1, 1, 3, 1, 1], [300, 70, 40, 77, 900], max_kv=1000)
    handle, rows = c.handle(env), sum(c.qo)
    want, want_lse = c.run(env)
    out, lse = c.outputs()
    lengths, tensors = c.lengths(env), c.tensors(env, out[:rows], lse[:rows])

    def step():
        handle.plan(lengths, stream())
        handle.run(tensors, stream())
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    good = c.kv_len.clone(), c.qo_indptr.clone()
    begin = [sum(c.qo[:r]) for r in range(6)]
    for how, call in (("eager", step), ("graph", graph.replay)):
        for values, faults in ((c.kv_len, kv_len), (c.qo_indptr, qo_indptr)):
            for index, value in (faults or {}).items():
                values[index] = value
        out.fill_(7.0)
        call()
        torch.cuda.synchronize()
        record = handle.plan_mem[:32].cpu().view(torch.int32)
        expect(record[0].item() == code and record[1].item() == bad[0], f"{how}: the record holds {record[:2].tolist()}")
        for r in range(5):
            mine = slice(begin[r], begin[r + 1])
            if r not in bad:
                same_bits(out[mine], want[mine], f"{how}: request {r} changed")
                same_bits(lse[mine], want_lse[mine], f"{how}: request {r}'s lse changed")
        mine = slice(begin[bad[0]], begin[bad[-1] + 1])
        expect(torch.isnan(out[mine].float()).all(), f"{how}: the bad request's rows must be NaN")
        c.kv_len.copy_(good[0])
        c.qo_indptr.copy_(good[1])
        call()
        torch.cuda.synchronize()
        same_bits(out[:rows], want, f"{how}: wrong after the fault has gone")
        expect(handle.plan_mem[:4].cpu().view(torch.int32).item() == 0, f"{how}: the record is kept after the fault has gone")
