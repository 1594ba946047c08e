"""The other ops against float64 and against the CPU back end."""
import math

import torch
from attention_checks import rotate
from harness import BF16, DEV, F16, F32, F64, check, close, expect, i32, rnd, same_bits


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


@check("rope_append: the bits of rope and append_kv", cases={f"{n} {t} tokens": dict(t=t, **kw) for t in (1, 65) for n, kw in DTYPES.items()})
def rope_append(env, t, dtype):
    hq, hk, d, page, pool = 9, 3, 64, 16, 8
    qkv = rnd(t, hq + 2 * hk, d, dtype=dtype)
    q, k, v = qkv[:, :hq], qkv[:, hq:hq + hk], qkv[:, hq + hk:]
    pos, slots = torch.arange(t, device=DEV, dtype=torch.int32), torch.randperm(pool * page, device=DEV)[:t]
    slots[t // 2] = -1
    caches = [torch.full((pool, page, hk, d), 7.0, device=DEV, dtype=dtype) for _ in range(4)]
    q_want, k_want, q_out = torch.empty_like(q), torch.empty(t, hk, d, device=DEV, dtype=dtype), torch.empty_like(q)
    env.call("rope", q=q, k=k, q_out=q_want, k_out=k_want, positions=pos)
    env.call("append_kv", k=k_want, v=v, k_cache=caches[0], v_cache=caches[1], slot_mapping=slots)
    env.call("rope_append", q=q, k=k, v=v, q_out=q_out, positions=pos, k_cache=caches[2], v_cache=caches[3], slot_mapping=slots)
    torch.cuda.synchronize()
    for got, want, name in ((q_out, q_want, "q"), (caches[2], caches[0], "k"), (caches[3], caches[1], "v")):
        same_bits(got, want, name)


LINEAR = {"qkv": dict(n=960, k=576, norm=1, bias=1), "output": dict(n=576, k=576, residual=1), "gated": dict(n=3072, k=576, norm=1, gated=1),
          "down": dict(n=576, k=1536, residual=1), "wide": dict(n=4096, k=4096), "ragged": dict(n=77, k=1000, norm=1, bias=1, residual=1)}


@check("linear", cases={f"{name} {rows} rows {d}": dict(rows=rows, **shape, **DTYPES[d]) for name, shape in LINEAR.items()
                        for rows in (1, 7, 16) for d in ("bf16", "f16")})
def linear(env, rows, n, k, dtype, norm=0, bias=0, residual=0, gated=0):
    x, w, b = rnd(rows, k, dtype=dtype), rnd(n, k, dtype=dtype, scale=k**-0.5), rnd(n, dtype=dtype)
    width = n // 2 if gated else n
    res, y = rnd(rows, width, dtype=dtype), torch.empty(rows, width, device=DEV, dtype=dtype)

    def formula(t):
        scale = torch.rsqrt((x.to(t) ** 2).mean(-1, keepdim=True) + 1e-5) if norm else 1.0
        s = (x.to(t) @ w.to(t).T) * scale + (b.to(t) if bias else 0)
        s = torch.nn.functional.silu(s[:, :width]) * s[:, width:] if gated else s
        return s + res.to(t) if residual else s
    extra = dict(bias=b) if bias else {}
    if residual:
        extra["residual"] = res
    env.call("linear", x=x, w=w, y=y, gated=gated, rms_eps=1e-5 if norm else 0.0, **extra)
    torch.cuda.synchronize()
    close(y, formula(F64), formula(F32).to(dtype), "y", 1e-4)


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
