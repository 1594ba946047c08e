"""References of the attention entries: what plan was given is kept, and what run returns is compared with it."""
import inspect
import math
import weakref

import torch

import reference as R
from oracle import spread

REQUESTS, ROWS, KV_HEADS = 5, 24, 2  # of a call: the spread that is compared


def cpu(x):
    return None if x is None else torch.as_tensor(x).detach().cpu().clone()


def unpack(cache, layout):
    """[pages, P, H, D] views of K and V."""
    k, v = cache if isinstance(cache, tuple) else (cache[:, 0], cache[:, -1])
    if k.dim() == 3:
        k, v = k[:, None] if layout == "NHD" else k[:, :, None], v[:, None] if layout == "NHD" else v[:, :, None]
    return (k, v) if layout == "NHD" else (k.transpose(1, 2), v.transpose(1, 2))


class Pages:
    """Keys of request b through a page table. lens: i64 [B]."""

    def __init__(self, indptr, indices, lens):
        self.indptr, self.indices, self.lens = indptr.tolist(), indices, lens.tolist()

    @classmethod
    def csr(cls, indptr, indices, last_page_len, page_size):
        indptr, last = cpu(indptr), cpu(last_page_len)
        pages = indptr[1:] - indptr[:-1]
        return cls(indptr, cpu(indices), torch.where(pages > 0, (pages - 1) * page_size + last, 0))

    def gather(self, b, k, v):
        ids = self.indices[self.indptr[b]:self.indptr[b + 1]].long().to(k.device)
        return tuple(x[ids].reshape(-1, *x.shape[2:])[:self.lens[b]] for x in (k, v))


class Rows:
    """Keys of request b in a ragged tensor."""

    def __init__(self, indptr):
        self.indptr = cpu(indptr).tolist()
        self.lens = [b - a for a, b in zip(self.indptr, self.indptr[1:])]

    def gather(self, b, k, v):
        at = slice(self.indptr[b], self.indptr[b + 1])
        return k[at], v[at]


class Mask:
    """Custom visibility: bool, all requests concatenated, or packed little-endian, each request on a new byte."""

    def __init__(self, mask, packed):
        self.mask, self.packed = cpu(mask), cpu(packed)

    def __bool__(self):
        return self.mask is not None or self.packed is not None

    def of(self, b, q_lens, kv_lens):
        sizes = [q * k for q, k in zip(q_lens, kv_lens)]
        if self.packed is not None:
            start = sum((n + 7) // 8 for n in sizes[:b])
            taken = self.packed[start:start + (sizes[b] + 7) // 8]
            bits = ((taken[:, None].int() >> torch.arange(8)) & 1).reshape(-1)[:sizes[b]].bool()
        else:
            bits = self.mask.reshape(-1)[sum(sizes[:b]):sum(sizes[:b + 1])].bool()
        return bits.view(q_lens[b], kv_lens[b])


class Items:
    """Multi-item scoring: a prefix, then items; each row of an item sees the prefix and its own item so far."""

    def __init__(self, prefix, positions, length):
        self.prefix, self.length = cpu(prefix.view(torch.int32)).reshape(-1).tolist(), int(length)
        self.positions = cpu(positions.view(torch.int16)).long() & 0xFFFF

    def of(self, b, rows, q_len, kv_len):
        prefix, key = self.prefix[b], torch.arange(kv_len)[None]
        see = []
        for at in (rows.cpu() + kv_len - q_len).tolist():
            if at < prefix:
                see.append(key <= at)
                continue
            t = int(self.positions[b * self.length + at - prefix])
            see.append((key < prefix) | ((key > at - t) & (key <= at)))
        return torch.cat(see) if see else torch.zeros(0, kv_len, dtype=torch.bool)


def compare(oracle, result, q, k, v, keys, q_indptr, *, causal=False, window_left=-1, sm_scale=None, soft_cap=None,
            pos_encoding_mode="NONE", rope_scale=None, rope_theta=None, mask=None, items=None, sinks=None, v_scale=1.0,
            has_lse=None, lse_scale=1.0):
    """result: out, or (out, lse); q [rows, Hq, D]; k, v what keys.gather reads."""
    o, lse = result if isinstance(result, (tuple, list)) else (result, None)
    q_indptr = [int(x) for x in q_indptr]
    q_lens = [b - a for a, b in zip(q_indptr, q_indptr[1:])]
    oracle.require(f"out: expected shape {(q.shape[0], q.shape[1])}", tuple(o.shape[:2]) == tuple(q.shape[:2]), tells=False)
    group = q.shape[1] // k.shape[-2]
    kv_heads = spread(k.shape[-2], KV_HEADS, q.device)
    heads = (kv_heads[:, None] * group + torch.arange(group, device=q.device)).reshape(-1)
    sm_scale = 1 / math.sqrt(q.shape[-1]) if sm_scale is None else sm_scale
    slopes = R.alibi_slopes(q.shape[1])[heads.cpu()] if pos_encoding_mode == "ALIBI" else None
    got_o, want_o, got_s, want_s = [], [], [], []
    for b in spread(len(q_lens), REQUESTS).tolist():
        rows = spread(q_lens[b], ROWS, q.device)
        if not len(rows):
            continue
        kv_len = keys.lens[b]
        kb, vb = (x[:, kv_heads] for x in keys.gather(b, k, v))
        if items is not None:
            see = items.of(b, rows, q_lens[b], kv_len).to(q.device)
        else:
            own = bool(mask)
            see = R.visible(rows, kv_len, q_lens[b], causal and not own, window_left)
            if own:
                see &= mask.of(b, q_lens, keys.lens)[rows.cpu()].to(q.device)
        at = q_indptr[b] + rows
        ro, rs = R.attention(q[at][:, heads], kb, vb, see, sm_scale=sm_scale, rows=rows, q_len=q_lens[b],
                             soft_cap=soft_cap or 0.0, pos_encoding_mode=pos_encoding_mode, slopes=slopes,
                             rope_scale=rope_scale or 1.0, rope_theta=rope_theta or 1e4,
                             sinks=None if sinks is None else sinks.to(q.device)[heads])
        got_o.append(o[at][:, heads]), want_o.append(ro * v_scale)
        if lse is not None:
            got_s.append(lse[at][:, heads]), want_s.append(rs * lse_scale)
    if got_o:
        # A mean of many keys is small: an error is measured by the values that went into it as well.
        dtype = o.dtype if o.dtype != torch.float32 else q.dtype
        oracle.compare("out", torch.cat(got_o), torch.cat(want_o), dtype=dtype)
    if got_s:
        oracle.compare("lse", torch.cat(got_s), torch.cat(want_s), tolerance=2e-3)


def scale_of(sm_scale, q, *factors):
    scale = 1 / math.sqrt(q.shape[-1]) if sm_scale is None else float(sm_scale)
    for f in factors:
        scale *= 1.0 if f is None else float(f)
    return scale


# ------------------------------------------------------------------------------------------ single requests
def _single_decode(oracle, a, result):
    k, v = (a["k"], a["v"]) if a["kv_layout"] == "NHD" else (a["k"].transpose(0, 1), a["v"].transpose(0, 1))
    o, s = result if isinstance(result, tuple) else (result, None)
    one = o[None] if s is None else (o[None], s[None])
    compare(oracle, one, a["q"][None], k, v, Rows(torch.tensor([0, k.shape[0]])), [0, 1],
            sm_scale=scale_of(a["sm_scale"], a["q"], a["q_scale"], a["k_scale"]), soft_cap=a["logits_soft_cap"],
            window_left=a["window_left"], pos_encoding_mode=a["pos_encoding_mode"], rope_scale=a["rope_scale"],
            rope_theta=a["rope_theta"], v_scale=float(a["v_scale"] or 1.0))


def _single_prefill(oracle, a, result):
    k, v = (a["k"], a["v"]) if a["kv_layout"] == "NHD" else (a["k"].transpose(0, 1), a["v"].transpose(0, 1))
    q = a["q"]
    compare(oracle, result, q, k, v, Rows(torch.tensor([0, k.shape[0]])), [0, q.shape[0]], causal=a["causal"],
            sm_scale=scale_of(a["sm_scale"], q, a["k_scale"]), soft_cap=a["logits_soft_cap"], window_left=a["window_left"],
            pos_encoding_mode=a["pos_encoding_mode"], rope_scale=a["rope_scale"], rope_theta=a["rope_theta"],
            mask=Mask(a["custom_mask"], a["packed_custom_mask"]), v_scale=float(a["v_scale"] or 1.0))


# ------------------------------------------------------------------------------------------ wrappers
plans = weakref.WeakKeyDictionary()
layouts = weakref.WeakKeyDictionary()


def _made(oracle, a, result):
    layouts[a["self"]] = a.get("kv_layout", "NHD")
    oracle.counts.clear()  # making a wrapper is no call to be compared

OPTIONS = ("causal", "window_left", "logits_soft_cap", "sm_scale", "pos_encoding_mode", "rope_scale", "rope_theta")
DEFAULTS = {"causal": False, "window_left": -1, "logits_soft_cap": None, "sm_scale": None, "pos_encoding_mode": "NONE",
            "rope_scale": None, "rope_theta": None, "q_len_per_req": 1}
DECODE_ORDER = ("pos_encoding_mode window_left logits_soft_cap q_data_type kv_data_type o_data_type data_type sm_scale "
                "rope_scale rope_theta").split()


def options(a):
    found = dict(DEFAULTS)
    for place in (dict(zip(DECODE_ORDER, a.get("deprecated_positional_args", ()))), a, a.get("kwargs", {})):
        found.update({n: place[n] for n in DEFAULTS if n in place})
    return found


def _plan_decode(oracle, a, result):
    wrapper, o = a["self"], options(a)
    per = o["q_len_per_req"] or 1
    lens = Pages.csr(a["indptr"], a["indices"], a["last_page_len"], a["page_size"])
    batch = len(lens.lens)
    plans[wrapper] = {"keys": lens, "q_indptr": [per * i for i in range(batch + 1)], **o, "causal": per > 1,
                      "heads": (a["num_qo_heads"], a["num_kv_heads"])}


def _plan_paged(oracle, a, result):
    keys = Pages.csr(a["paged_kv_indptr"], a["paged_kv_indices"], a["paged_kv_last_page_len"], a["page_size"])
    _keep(a, keys)


def _plan_ragged(oracle, a, result):
    _keep(a, Rows(a["kv_indptr"]))


def _keep(a, keys):
    items = None
    if a.get("prefix_len_ptr") is not None:
        items = Items(a["prefix_len_ptr"], a["token_pos_in_items_ptr"], a["token_pos_in_items_len"])
    plans[a["self"]] = {"keys": keys, "q_indptr": cpu(a["qo_indptr"]).tolist(), **options(a), "items": items,
                        "mask": Mask(a.get("custom_mask"), a.get("packed_custom_mask"))}


def _chosen(p):
    names = {"logits_soft_cap": "soft_cap"}
    return {names.get(n, n): p[n] for n in OPTIONS if n != "sm_scale"}


def _finish(oracle, wrapper, a, result, k, v, sinks=None, sm_scale=None):
    p = plans.get(wrapper)
    if p is None or (a.get("args") and sinks is None):
        return
    q = a["q"]
    if p["q_indptr"][-1] != q.shape[0]:
        return  # replanned behind the wrapper's back, by its buffers
    factors = [a.get(n) for n in ("q_scale", "k_scale")]
    if any(isinstance(f, torch.Tensor) and f.numel() > 1 for f in factors):
        return
    lse_scale = 1.0 if a.get("lse_base", "log2") == "log2" else 1 / R.LOG2E
    if a.get("lse_layout", "NH") == "HN" and isinstance(result, tuple):
        result = result[0], result[1].T
    compare(oracle, result, q, k, v, p["keys"], p["q_indptr"], **_chosen(p), items=p.get("items"), mask=p.get("mask"),
            sm_scale=scale_of(p["sm_scale"] if sm_scale is None else sm_scale, q, *factors),
            sinks=a.get("sinks") if sinks is None else sinks, v_scale=float(a.get("v_scale") or 1.0), lse_scale=lse_scale)


def _run_paged(oracle, a, result):
    wrapper = a["self"]
    k, v = unpack(a["paged_kv_cache"], layouts[wrapper])
    sinks, sm_scale = None, None
    if len(a.get("args") or ()) == 2 and getattr(wrapper, "_variant_has_sinks", False):
        sinks, sm_scale = a["args"]
    _finish(oracle, wrapper, a, result, k, v, sinks, sm_scale)


def _run_ragged(oracle, a, result):
    wrapper = a["self"]
    sinks, sm_scale = None, None
    if len(a.get("args") or ()) == 2 and getattr(wrapper, "_variant_has_sinks", False):
        sinks, sm_scale = a["args"]
    _finish(oracle, wrapper, a, result, a["k"], a["v"], sinks, sm_scale)


def _forward(run):
    def check(oracle, a, result):
        p = plans.get(a["self"])
        if p is None:
            return
        saved = dict(p)
        p.update({n: a[n] for n in OPTIONS if n in a})
        run(oracle, a, result)
        p.update(saved)
    return check


def _plan_batch_attention(oracle, a, result):
    keys = Pages(cpu(a["kv_indptr"]), cpu(a["kv_indices"]), cpu(a["kv_len_arr"]).long())
    plans[a["self"]] = {"keys": keys, "q_indptr": cpu(a["qo_indptr"]).tolist(), **options(a)}


def _run_batch_attention(oracle, a, result):
    wrapper = a["self"]
    k, v = unpack(a["kv_cache"], layouts[wrapper])
    p = plans.get(wrapper)
    if p is not None:
        p["logits_soft_cap"] = a["logits_soft_cap"]
        _finish(oracle, wrapper, a, result, k, v)


def _plan_bsr(oracle, a, result):
    indptr, indices = cpu(a["indptr"]).tolist(), cpu(a["indices"]).tolist()
    m, n, r, c = a["M"], a["N"], a["R"], a["C"]
    see = torch.zeros(m, n, dtype=torch.bool)
    block = Mask(a["mask"], a["packed_mask"])
    mask = cpu(a["mask"])
    if mask is None and a["packed_mask"] is not None:
        mask = block.of(0, [len(indices)], [r * c])
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            j = indices[e]
            part = torch.ones(r, c, dtype=torch.bool) if mask is None else mask.reshape(-1, r, c)[e]
            target = see[i * r:(i + 1) * r, j * c:(j + 1) * c]
            target |= part[:target.shape[0], :target.shape[1]]
    plans[a["self"]] = {"see": see, **options(a)}


def _run_bsr(oracle, a, result):
    p = plans.get(a["self"])
    if p is None or p["causal"]:
        return
    q, k, v = a["q"], a["k"], a["v"]
    keys = Rows(torch.tensor([0, k.shape[0]]))
    compare(oracle, result, q, k, v, keys, [0, q.shape[0]], **{**_chosen(p), "causal": False},
            sm_scale=scale_of(p["sm_scale"], q), mask=Mask(p["see"], None))


def _plan_variable(oracle, a, result):
    plans[a["self"]] = {"map": cpu(a["block_mask_map"]), "rows": cpu(a["block_row_sz"]), "cols": cpu(a["block_col_sz"]),
                        **options(a)}


def _run_variable(oracle, a, result):
    p = plans.get(a["self"])
    if p is None or p["causal"]:
        return
    o, lse = result if isinstance(result, tuple) else (result, None)
    group = a["q"].shape[0] // a["k"].shape[0]
    for h in spread(a["k"].shape[0], KV_HEADS).tolist():
        see = p["map"][h].repeat_interleave(p["rows"][h].long(), 0).repeat_interleave(p["cols"][h].long(), 1)
        at = slice(h * group, (h + 1) * group)
        q, k, v = a["q"][at].transpose(0, 1), a["k"][h:h + 1].transpose(0, 1), a["v"][h:h + 1].transpose(0, 1)
        part = o[at].transpose(0, 1)
        compare(oracle, part, q, k, v, Rows(torch.tensor([0, k.shape[0]])), [0, q.shape[0]],
                **{**_chosen(p), "causal": False}, sm_scale=scale_of(p["sm_scale"], q), mask=Mask(see, None))


class Levels:
    """Keys of request b: those of its segment on every level, shared first."""

    def __init__(self, qo_indptrs, pages):
        self.pages = pages
        last = qo_indptrs[-1]
        self.segments = [[next(s for s in range(len(q) - 1) if q[s + 1] > last[b] or s == len(q) - 2)
                          for b in range(len(last) - 1)] for q in qo_indptrs]
        self.segments[-1] = list(range(len(last) - 1))
        self.lens = [sum(p.lens[s[b]] for p, s in zip(pages, self.segments)) for b in range(len(last) - 1)]

    def gather(self, b, k, v):
        parts = [p.gather(s[b], k, v) for p, s in zip(self.pages, self.segments)]
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def _plan_cascade(oracle, a, result):
    indptrs = [cpu(x).tolist() for x in a["qo_indptr_arr"]]
    pages = [Pages.csr(p, i, n, a["page_size"]) for p, i, n in
             zip(a["paged_kv_indptr_arr"], a["paged_kv_indices_arr"], a["paged_kv_last_page_len"])]
    # Causality of the last level alone is that of the whole: rows stand at the end of the chain.
    plans[a["self"]] = {"keys": Levels(indptrs, pages), "q_indptr": indptrs[-1], **options(a)}


def _run_cascade(oracle, a, result):
    k, v = unpack(a["paged_kv_cache"], layouts[a["self"]])
    _finish(oracle, a["self"], a, result, k, v)


def _plan_shared_decode(oracle, a, result):
    keys = Pages.csr(a["unique_kv_indptr"], a["unique_kv_indices"], a["unique_kv_last_page_len"], a["page_size"])
    plans[a["self"]] = {"keys": keys, "q_indptr": list(range(len(keys.lens) + 1)), **options({})}


class Shared:
    """Keys that all requests share, then a request's own."""

    def __init__(self, k, v, own):
        self.k, self.v, self.own = k, v, own
        self.lens = [k.shape[0] + n for n in own.lens]

    def gather(self, b, k, v):
        own = self.own.gather(b, k, v)
        return torch.cat([self.k, own[0]]), torch.cat([self.v, own[1]])


def _run_shared(oracle, a, result):
    p = plans.get(a["self"])
    if p is None:
        return
    layout = layouts[a["self"]]
    k, v = unpack(a["unique_kv_cache"], layout)
    shared = [x if layout == "NHD" else x.transpose(0, 1) for x in (a["k_shared"], a["v_shared"])]
    compare(oracle, result, a["q"], k, v, Shared(*shared, p["keys"]), p["q_indptr"], causal=a.get("causal", False),
            sm_scale=scale_of(a.get("sm_scale"), a["q"]))


def _run_pod(oracle, a, result):
    p = plans.get(a["self"])
    k, v = (a["k_p"], a["v_p"]) if a["kv_layout_p"] == "NHD" else (a["k_p"].transpose(0, 1), a["v_p"].transpose(0, 1))
    q = a["q_p"]
    compare(oracle, result[0], q, k, v, Rows(torch.tensor([0, k.shape[0]])), [0, q.shape[0]], causal=a["causal_p"],
            sm_scale=scale_of(a["sm_scale_p"], q), soft_cap=a.get("logits_soft_cap_p"), window_left=a["window_left_p"],
            pos_encoding_mode=a["pos_encoding_mode_p"], rope_scale=a["rope_scale_p"], rope_theta=a["rope_theta_p"],
            mask=Mask(a["custom_mask_p"], a["packed_custom_mask_p"]))
    if p is not None:
        k, v = unpack(a["paged_kv_cache_d"], layouts[a["self"]])
        compare(oracle, result[1], a["q_d"], k, v, p["keys"], p["q_indptr"], **_chosen(p),
                sm_scale=scale_of(p["sm_scale"], a["q_d"], a.get("q_scale"), a.get("k_scale")), v_scale=float(a.get("v_scale") or 1))


def _plan_batch_pod(oracle, a, result):
    keys = [Pages.csr(a[f"kv_indptr_{x}"], a[f"kv_indices_{x}"], a[f"last_page_len_{x}"], a["page_size"]) for x in "pd"]
    plans[a["self"]] = {"keys": keys, "q_indptr": [cpu(a[f"qo_indptr_{x}"]).tolist() for x in "pd"], **options(a)}


def _run_batch_pod(oracle, a, result):
    p = plans.get(a["self"])
    if p is None:
        return
    for i, x in enumerate("pd"):
        k, v = unpack(a[f"paged_kv_cache_{x}"], layouts[a["self"]])
        q = a[f"q_{x}"]
        chosen = {**_chosen(p), "causal": x == "p" and a["causal_p"]}
        mask = Mask(a["custom_mask_p"], a["packed_custom_mask_p"]) if x == "p" else None
        compare(oracle, result[i], q, k, v, p["keys"][i], p["q_indptr"][i], **chosen, sm_scale=scale_of(p["sm_scale"], q), mask=mask)


# ------------------------------------------------------------------------------------------ without a plan
def _tables(a):
    lens = cpu(a["seq_lens"]).long().reshape(-1)
    table = cpu(a["block_tables"])
    indptr = torch.arange(len(lens) + 1) * table.shape[1]
    return Pages(indptr, table.reshape(-1), lens)


def _number(x):
    return 1.0 if x is None else float(x)


def _trtllm_decode(oracle, a, result):
    q = a["query"]
    if q.element_size() == 1 or a.get("mask") is not None:
        return
    keys = _tables(a)
    cum = a.get("cum_seq_lens_q", a.get("q_cu_seq_lens"))
    batch = len(keys.lens)
    per = a.get("q_len_per_req") or 1
    indptr = cpu(cum).tolist() if cum is not None else [per * i for i in range(batch + 1)]
    k, v = unpack(a["kv_cache"], a["kv_layout"])
    compare(oracle, result, q, k, v, keys, indptr, causal=True, window_left=a["window_left"], sm_scale=_number(a["bmm1_scale"]),
            v_scale=_number(a["bmm2_scale"]), sinks=None if a["sinks"] is None else a["sinks"].reshape(-1))


def _trtllm_context(oracle, a, result):
    if a["query"].element_size() == 1:
        return
    k, v = unpack(a["kv_cache"], a["kv_layout"])
    compare(oracle, result, a["query"], k, v, _tables(a), cpu(a["cum_seq_lens_q"]).tolist(), causal=a["causal"],
            window_left=a["window_left"], sm_scale=_number(a["bmm1_scale"]), v_scale=_number(a["bmm2_scale"]),
            sinks=None if a["sinks"] is None else a["sinks"].reshape(-1))


def _xqa(oracle, a, result):
    q, out = a["q"], a["output"]
    if q.element_size() == 1 or a["k_cache"].element_size() == 1 or a["mask"] is not None or a["q_cu_seq_lens"] is not None:
        return
    lens = cpu(a["seq_lens"]).long().reshape(-1)
    table = cpu(a["page_table"]).reshape(len(lens), -1)
    keys = Pages(torch.arange(len(lens) + 1) * table.shape[1], table.reshape(-1), lens)
    k, v = unpack((a["k_cache"], a["v_cache"]), a["kv_layout"])
    flat = q.reshape(-1, *q.shape[-2:])
    compare(oracle, out.reshape(flat.shape[0], flat.shape[1], -1), flat, k, v, keys,
            [i * (flat.shape[0] // len(lens)) for i in range(len(lens) + 1)], causal=True,
            window_left=a["sliding_win_size"] - 1 if a["sliding_win_size"] > 0 else -1,
            sm_scale=_number(a["q_scale"]) / math.sqrt(q.shape[-1]), v_scale=_number(a["rcp_out_scale"]),
            sinks=None if a["sinks"] is None else a["sinks"].reshape(-1))


def install(oracle):
    """Wraps what is there; a module that doesn't load is left to upstream's tests."""
    import importlib
    base = "fulmen.flashinfer."

    def load(name):
        try:
            return importlib.import_module(base + name)
        except ImportError as error:
            oracle.wrapped.append(f"missing: {name} ({error})")
            return None

    decode, prefill, cascade, attention, sparse, pod = map(load, ("decode", "prefill", "cascade", "attention", "sparse", "pod"))
    functions = [(decode, "single_decode_with_kv_cache", _single_decode),
                 (prefill, "single_prefill_with_kv_cache", _single_prefill),
                 (prefill, "single_prefill_with_kv_cache_return_lse", _single_prefill),
                 (decode, "trtllm_batch_decode_with_kv_cache", _trtllm_decode),
                 (decode, "xqa_batch_decode_with_kv_cache", _trtllm_decode),
                 (prefill, "trtllm_batch_context_with_kv_cache", _trtllm_context),
                 (decode, "fast_decode_plan", _plan_decode)]
    xqa = load("xqa")
    if xqa is not None:
        import fulmen.flashinfer as top
        top.xqa = oracle.patch(xqa, "xqa", _xqa, ["output"])
    wrappers = [(decode, "BatchDecodeWithPagedKVCacheWrapper", _plan_decode, _run_paged),
                (prefill, "BatchPrefillWithPagedKVCacheWrapper", _plan_paged, _run_paged),
                (prefill, "BatchPrefillWithRaggedKVCacheWrapper", _plan_ragged, _run_ragged),
                (cascade, "MultiLevelCascadeAttentionWrapper", _plan_cascade, _run_cascade),
                (cascade, "BatchDecodeWithSharedPrefixPagedKVCacheWrapper", _plan_shared_decode, _run_shared),
                (cascade, "BatchPrefillWithSharedPrefixPagedKVCacheWrapper", _plan_paged, _run_shared),
                (pod, "PODWithPagedKVCacheWrapper", _plan_decode, _run_pod),
                (pod, "BatchPODWithPagedKVCacheWrapper", _plan_batch_pod, _run_batch_pod),
                (attention, "BatchAttention", _plan_batch_attention, _run_batch_attention),
                (sparse, "BlockSparseAttentionWrapper", _plan_bsr, _run_bsr),
                (sparse, "VariableBlockSparseAttentionWrapper", _plan_variable, _run_variable)]
    for module, name, check in functions:
        if module is not None and hasattr(module, name):
            oracle.patch(module, name, check, [n for n in ("out", "lse") if n in inspect.signature(getattr(module, name)).parameters])
    for module, name, plan, run in wrappers:
        owner = getattr(module, name, None) if module is not None else None
        if owner is None:
            continue
        forward = _forward(run) if run in (_run_paged, _run_ragged) else run
        own = {m: f for m, f in vars(owner).items() if inspect.isfunction(f)}
        inherited = {m: getattr(owner, m) for m in METHODS if m not in own and inspect.isfunction(getattr(owner, m, None))}
        original = {**inherited, **own}
        for method, (check, like) in {"__init__": (_made, None), "plan": (plan, None), "begin_forward": (plan, None), "run": (run, None),
                                      "run_return_lse": (run, "run"), "forward": (forward, None),
                                      "forward_return_lse": (forward, "forward")}.items():
            if method in original:
                oracle.patch(owner, method, check, like=original.get(like))


METHODS = ("__init__", "plan", "begin_forward", "run", "run_return_lse", "forward", "forward_return_lse")
