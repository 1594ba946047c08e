"""References of everything around attention."""
import math

import numpy as np
import torch

import reference as R
from oracle import spread

ROWS = 64


def _rows(x, most=ROWS):
    return spread(x.shape[0], most, x.device)


def _norm(offset=0.0):
    def check(oracle, a, result):
        at = _rows(a["input"])
        x = a["before"]["out"] if a["out"] is a["input"] else a["input"]
        expected = R.rms_norm(x[at], a["weight"], a["eps"], offset)
        oracle.compare("rmsnorm", result[at], expected)
        if a["out"] is not None:
            oracle.require("out: expected to be returned", result is a["out"], tells=False)
    return check


def _add_norm(offset=0.0):
    def check(oracle, a, result):
        at = _rows(a["input"])
        x, residual = a["before"]["input"][at], a["before"]["residual"][at]
        total = x.double() + residual.double()
        oracle.compare("residual", a["residual"][at], total)
        # The norm may be of the sum before or after it was rounded.
        oracle.compare("input", a["input"][at], R.rms_norm(total, a["weight"], a["eps"], offset), dtype=x.dtype)
    return check


def _layer_norm(oracle, a, result):
    at = _rows(a["input"])
    oracle.compare("layernorm", result[at], R.layer_norm(a["input"][at], a["gemma"], a["beta"], a["eps"]))


def _gated(kind):
    def check(oracle, a, result):
        x = a["input"].reshape(-1, a["input"].shape[-1])
        at = _rows(x)
        oracle.compare(kind, result.reshape(-1, result.shape[-1])[at], R.gated(x[at], kind))
    return check


def _rope(kind, in_place):
    def check(oracle, a, result):
        before = a["before"] if in_place else a
        after = (a["q"], a["k"]) if in_place else result
        q = before["q"]
        at = _rows(q)
        if "pos_ids" in a:
            positions = a["pos_ids"].long()
        else:
            indptr, row = a["indptr"].long(), torch.arange(q.shape[0], device=q.device)
            segment = (row[:, None] >= indptr[None, 1:]).sum(-1).clamp(max=len(indptr) - 2)
            positions = row - indptr[segment] + a["offsets"].long()[segment]
        llama31 = None
        if kind == "llama31":
            llama31 = a["low_freq_factor"], a["high_freq_factor"], a["old_context_len"]
        angles = R.rope_angles(positions[at], a["rotary_dim"] or q.shape[-1], a["rope_theta"], a["rope_scale"], llama31)
        for name, x, y in zip("qk", (before["q"], before["k"]), after):
            oracle.compare(name, y[at], R.rope(x[at], angles.cos(), angles.sin(), a["interleave"]))
    return check


def _rope_cache(in_place):
    def check(oracle, a, result):
        before = a["before"] if in_place else a
        after = (a["query"], a["key"]) if in_place else result
        at = _rows(before["query"])
        cos, sin = a["cos_sin_cache"][a["positions"].long()[at]].chunk(2, -1)
        for name, y in zip(("query", "key"), after):
            x = before[name][at].reshape(len(at), -1, a["head_size"])
            oracle.compare(name, y[at].reshape(x.shape), R.rope(x, cos, sin, not a["is_neox"]))
    return check


# ------------------------------------------------------------------------------------------ sampling
def _vector(x, rows, device, dtype=torch.float64):
    if x is None:
        return None
    return x.to(dtype) if isinstance(x, torch.Tensor) else torch.full((rows,), x, dtype=dtype, device=device)


def _uniform(random, rows, at):
    seed, offset = random
    if isinstance(seed, torch.Tensor):
        seed, offset = (x.cpu().numpy().view(np.uint64)[at] for x in (seed, offset))
        return R.philox(seed, offset, 0)
    return R.philox(np.uint64(seed % 2**64), np.uint64(offset % 2**64), at)


def _drawn(from_logits=False, top_k=False, top_p=False, min_p=False):
    def check(oracle, a, result):
        x = a["logits" if from_logits else "probs"]
        valid = None
        if isinstance(result, tuple):
            result, valid = result
        rows, device = x.shape[0], x.device
        source = torch.arange(rows, device=device) if a["indices"] is None else a["indices"].long()
        oracle.require(f"samples: expected shape {(len(source),)}", tuple(result.shape) == (len(source),), tells=False)
        at = spread(len(source), 16, device)
        p = x[source[at]]
        sequential = (top_k and top_p) and a.get("filter_apply_order", "joint") != "joint"
        probs = torch.softmax(p.double(), -1) if from_logits else p.double()
        bad = ~(probs.sum(-1) > 0)
        thresholds = {n: _vector(a[n], rows, device)[source[at]] if on else None
                      for n, on in (("top_k", top_k), ("top_p", top_p), ("min_p", min_p))}
        masses, sure = R.filtered(probs, joint=not sequential, **thresholds)
        token = result[at].long()
        for row in range(len(at)):
            if bad[row]:
                oracle.require("a row without mass: expected word 0", int(token[row]) == 0)
                oracle.require("a row without mass: expected not to be valid", valid is None or not bool(valid[at[row]]))
        u = torch.from_numpy(_uniform(oracle.random, len(source), at.cpu().numpy())).to(device)
        # The running mass is known up to the words whose membership is in doubt.
        doubtful = torch.where(sure, 0.0, probs)
        total = masses.sum(-1)
        slack = (doubtful.sum(-1) + 1e-6 * total).clamp(max=1.0)
        upper = masses.cumsum(-1).gather(-1, token[:, None])[:, 0]
        own = torch.where((masses > 0) | ~sure, probs, 0.0).gather(-1, token[:, None])[:, 0]
        fits = (u * total >= upper - own - 2 * slack) & (u * total <= upper + 2 * slack) & ((own > 0) | bad)
        oracle.require(f"samples: word {token.tolist()[:4]} isn't what u = {u.tolist()[:4]} draws", bool((fits | bad).all()))
    return check


def _softmax(oracle, a, result):
    logits = a["logits"]
    at = _rows(logits, 16)
    t = _vector(1.0 if a["temperature"] is None else a["temperature"], logits.shape[0], logits.device)[at]
    oracle.compare("softmax", result[at], torch.softmax(logits[at].double() / t[:, None], -1), absolute=1e-6)


def _renormed(top_k=False, top_p=False):
    def check(oracle, a, result):
        x = a["probs"]
        at = _rows(x, 16)
        thresholds = {n: _vector(a[n], x.shape[0], x.device)[at] if on else None
                      for n, on in (("top_k", top_k), ("top_p", top_p))}
        masses, sure = R.filtered(x[at], **thresholds)
        kept = result[at] > 0
        # Words of mass zero are neither kept nor left out; those in doubt may be either.
        oracle.require("renorm: other words than expected", bool(((kept == (masses > 0)) | ~sure | (x[at].double() < 1e-12)).all()))
        expected = torch.where(kept, x[at].double(), 0.0)
        oracle.compare("renorm", result[at], expected / expected.sum(-1, keepdim=True))
    return check


def _masked(oracle, a, result):
    x = a["logits"]
    at = _rows(x, 16)
    k = _vector(a["top_k"], x.shape[0], x.device, torch.int64)[at]
    rank = (x[at].double().softmax(-1)).clamp(min=0)  # only the order matters, of finite values
    _, sure = R.filtered(rank, top_k=k)
    likelier = torch.argsort(torch.sort(x[at].double(), dim=-1, descending=True, stable=True).indices, -1)
    expected = torch.where(likelier < k[:, None], x[at], -math.inf)
    same = (result[at] == expected) | ~sure | (result[at].isnan() & expected.isnan())
    oracle.require("top_k_mask_logits: other words than expected", bool(same.all()))


def _top_k(oracle, a, result):
    x = a["input"]
    at = _rows(x, 16)
    values, indices = result
    expected = torch.topk(x[at].double(), a["k"], -1).values
    oracle.compare("values", values[at].double().sort(-1, descending=True).values, expected, dtype=x.dtype, tolerance=1e-12)
    oracle.compare("values at indices", x[at].gather(-1, indices[at]).double(), values[at].double(), tolerance=1e-12)
    oracle.require("indices: expected distinct", all(len(set(row)) == len(row) for row in indices[at].tolist()))


def _chain(oracle, a, result):
    tokens, accepted, emitted = result
    draft, target, ids = a["draft_probs"].double(), a["target_probs"].double(), a["draft_token_ids"].long()
    batch, n, vocab = draft.shape
    given = a["before"].get("maybe_output_emitted_draft_token_num")
    count = (emitted - given if given is not None else emitted).long()
    oracle.require("emitted: expected in [0, n]", bool(((count >= 0) & (count <= n)).all()))
    count = count.clamp(0, n)
    place = torch.arange(n + 1, device=tokens.device)[None]
    padded = torch.cat([ids, ids.new_zeros(batch, 1)], 1)
    oracle.require("tokens: expected the accepted draft, a word, -1", bool(torch.where(
        place < count[:, None], tokens == padded, torch.where(place == count[:, None], (tokens >= 0) & (tokens < vocab), tokens == -1)).all()))
    pd, pt = draft.gather(-1, ids[..., None])[..., 0], target[:, :n].gather(-1, ids[..., None])[..., 0]
    taken = place[:, :n] < count[:, None]
    refused = place[:, :n] == count[:, None]
    oracle.require("accepted a word of no mass", not bool((taken & (pt <= 0)).any()))
    oracle.require("refused a certain word", not bool((refused & (pt >= pd) & (pt > 0)).any()))
    last = tokens.gather(1, count[:, None]).long().clamp(0, vocab - 1)
    at = count[:, None, None].expand(-1, 1, vocab)
    left = target.gather(1, at)[:, 0]
    minus = draft.gather(1, at.clamp(max=n - 1))[:, 0] if n else torch.zeros_like(left)
    left = torch.where((count < n)[:, None], (left - minus).clamp(min=0), left)
    oracle.require("the last word has no mass", bool((left.gather(-1, last) > -1e-12).all() and
                                                     (left.gather(-1, last)[:, 0] > 0).double().mean() > 0.99))


# ------------------------------------------------------------------------------------------ bits, pages, merges
def _packbits(oracle, a, result):
    expected = np.packbits((a["x"].cpu().numpy().reshape(-1) != 0), bitorder=a["bitorder"])
    oracle.require("packbits differs", np.array_equal(result.cpu().numpy(), expected), tells=expected.any())


def _segment_packbits(oracle, a, result):
    x, indptr = (a["x"].cpu().numpy() != 0), a["indptr"].cpu().numpy()
    parts = [np.packbits(x[i:j], bitorder=a["bitorder"]) for i, j in zip(indptr, indptr[1:])]
    expected = np.concatenate([np.zeros(0, np.uint8), *parts])
    oracle.require("segment_packbits differs", np.array_equal(result[0].cpu().numpy(), expected))
    sizes = np.cumsum([0, *map(len, parts)])
    oracle.require("new_indptr differs", np.array_equal(result[1].cpu().numpy(), sizes))


def _appended(mla):
    names = (("append_ckv", "ckv_cache"), ("append_kpe", "kpe_cache")) if mla else None

    def check(oracle, a, result):
        batch, position = a["batch_indices"].tolist(), a["positions"].tolist()
        indptr, indices = a["kv_indptr"].tolist(), a["kv_indices"].tolist()
        if mla:
            pairs = [(a[x], a[cache], cache) for x, cache in names]
        else:
            cache = a["paged_kv_cache"]
            views = list(cache) if isinstance(cache, tuple) else list(cache.unbind(1))
            views = [v.transpose(1, 2) if a["kv_layout"] == "HND" else v for v in views]
            pairs = [(a["append_key"], views[0], "k"), (a["append_value"], views[1], "v")]
        for x, cache, name in pairs:
            rows = [i for i in range(len(batch)) if batch[i] >= 0][:4000]
            size = cache.shape[1]
            page = [indices[indptr[batch[i]] + position[i] // size] for i in rows]
            slot = [position[i] % size for i in rows]
            oracle.require(f"append: {name} differs", bool((cache[page, slot] == x[rows]).all()) if rows else True)
    return check


def _positions(oracle, a, result):
    indptr, lens = a["append_indptr"].tolist(), a["seq_lens"].tolist()
    batch, at = [-1] * a["nnz"], [0] * a["nnz"]
    for b in range(len(lens)):
        for i in range(indptr[b], min(indptr[b + 1], a["nnz"])):
            batch[i], at[i] = b, lens[b] - indptr[b + 1] + i
    oracle.require("batch_indices differ", result[0].tolist() == batch)
    oracle.require("positions differ", result[1].tolist() == at)


def _seq_lens(oracle, a, result):
    pages = (a["kv_indptr"][1:] - a["kv_indptr"][:-1]).tolist()
    expected = [max(n - 1, 0) * a["page_size"] + last for n, last in zip(pages, a["kv_last_page_len"].tolist())]
    oracle.require("seq_lens differ", result.tolist() == expected)


def _merge(oracle, a, result):
    v = torch.stack([a["v_a"], a["v_b"]], 1)
    expected_v, expected_s = R.merge(v, torch.stack([a["s_a"], a["s_b"]], 1))
    oracle.compare("v", result[0], expected_v)
    oracle.compare("s", result[1], expected_s, tolerance=1e-3)


def _merge_in_place(oracle, a, result):
    v, s = a["before"]["v"], a["before"]["s"]
    expected_v, expected_s = R.merge(torch.stack([v, a["v_other"]], 1), torch.stack([s, a["s_other"]], 1))
    if a["mask"] is not None:
        kept = ~a["mask"].bool()
        expected_v[kept], expected_s[kept] = v[kept].double(), s[kept].double()
    oracle.compare("v", a["v"], expected_v)
    oracle.compare("s", a["s"], expected_s, tolerance=1e-3)


def _merges(oracle, a, result):
    expected_v, expected_s = R.merge(a["v"], a["s"])
    oracle.compare("v", result[0], expected_v)
    oracle.compare("s", result[1], expected_s, tolerance=1e-3)


def _merge_segments(oracle, a, result):
    bounds = a["indptr"].tolist()
    for i in spread(len(bounds) - 1, 16).tolist():
        if bounds[i] == bounds[i + 1]:
            continue
        v, s = R.merge(a["v"][None, bounds[i]:bounds[i + 1]], a["s"][None, bounds[i]:bounds[i + 1]])
        oracle.compare("v", result[0][i], v[0])
        oracle.compare("s", result[1][i], s[0], tolerance=1e-3)


def install(oracle):
    from fulmen.flashinfer import activation, cascade, norm, page, quantization, rope, sampling, topk
    from fulmen.flashinfer.triton import cascade as triton_cascade

    p = oracle.patch
    p(norm, "rmsnorm", _norm(), ["out"]), p(norm, "gemma_rmsnorm", _norm(1.0), ["out"])
    p(norm, "fused_add_rmsnorm", _add_norm(), ["input", "residual"])
    p(norm, "gemma_fused_add_rmsnorm", _add_norm(1.0), ["input", "residual"])
    p(norm, "layernorm", _layer_norm)
    for kind in ("silu", "gelu", "gelu_tanh"):
        p(activation, f"{kind}_and_mul", _gated(kind))
    for kind in ("rope", "llama31_rope"):
        for ids in ("", "_pos_ids"):
            family = "llama31" if "llama31" in kind else "linear"
            p(rope, f"apply_{kind}{ids}", _rope(family, False))
            p(rope, f"apply_{kind}{ids}_inplace", _rope(family, True), ["q", "k"])
    p(rope, "apply_rope_with_cos_sin_cache", _rope_cache(False))
    p(rope, "apply_rope_with_cos_sin_cache_inplace", _rope_cache(True), ["query", "key"])

    inner = sampling._random

    def random(*args, **kwargs):  # what tells the draws apart decides which word is right
        oracle.random = inner(*args, **kwargs)
        return oracle.random

    sampling._random = random
    p(sampling, "softmax", _softmax)
    p(sampling, "sampling_from_logits", _drawn(from_logits=True)), p(sampling, "sampling_from_probs", _drawn())
    p(sampling, "top_k_sampling_from_probs", _drawn(top_k=True)), p(sampling, "top_p_sampling_from_probs", _drawn(top_p=True))
    p(sampling, "min_p_sampling_from_probs", _drawn(min_p=True))
    p(sampling, "top_k_top_p_sampling_from_probs", _drawn(top_k=True, top_p=True))
    p(sampling, "top_k_top_p_sampling_from_logits", _drawn(from_logits=True, top_k=True, top_p=True))
    p(sampling, "top_k_renorm_probs", _renormed(top_k=True)), p(sampling, "top_p_renorm_probs", _renormed(top_p=True))
    p(sampling, "top_k_mask_logits", _masked)
    p(sampling, "chain_speculative_sampling", _chain, ["maybe_output_accepted_token_num", "maybe_output_emitted_draft_token_num"])
    p(topk, "top_k", _top_k)
    p(quantization, "packbits", _packbits), p(quantization, "segment_packbits", _segment_packbits)
    caches = ["paged_kv_cache"]
    p(page, "append_paged_kv_cache", _appended(False), caches)
    p(page, "append_paged_mla_kv_cache", _appended(True), ["ckv_cache", "kpe_cache"])
    p(page, "get_batch_indices_positions", _positions), p(page, "get_seq_lens", _seq_lens)
    for module in (cascade, triton_cascade):
        p(module, "merge_state", _merge), p(module, "merge_states", _merges)
        p(module, "merge_state_in_place", _merge_in_place, ["v", "s"])
    p(triton_cascade, "variable_length_merge_states", _merge_segments)
