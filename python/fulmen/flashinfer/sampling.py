"""Sampling from logits or probabilities [rows, V], and filters on them.

Thresholds and the temperature are numbers, or tensors with one value per row of the input. With `indices` output i
draws from row indices[i]. Where several words tie at a threshold, the filters keep all of them; a draw takes the first
ones. `deterministic` changes nothing: the same seed and offset draw the same words always.
"""
import math

import torch

from .. import ops
from . import _absent
from ._api import api
from .jit import gen_sampling_module


def get_seed_and_offset(increment, generator=None, device=None):
    """Seed and offset of `generator`, or of the device's default one, advanced by `increment` rounded up to 4."""
    device = torch.device("cuda" if device is None and generator is None else device or generator.device)
    if device.type != "cuda":  # torch's CPU generator has no offset: its next number is the seed
        return int(torch.randint(2**62, (), generator=generator, device="cpu")), 0
    if generator is None:
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
    offset = generator.get_offset() + (increment + 3) // 4 * 4
    generator.set_offset(offset)
    return generator.initial_seed(), offset


def _threshold(value, rows, dtype, name):
    """A number, or a contiguous tensor [rows] of dtype."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.dim() == 0:
        raise ValueError(f"{name}: Expected a 1D tensor of shape (batch_size,) or scalar for the sampling parameter, "
                         "got a 0-dimensional tensor.")
    if value.dim() != 1:
        raise ValueError(f"{name}: Expected a 1D tensor or scalar for the sampling parameter, got a {value.dim()}D tensor.")
    if value.shape[0] != rows:
        raise ValueError(f"{name}: Sampling parameter tensor batch size mismatch: expected {rows}, found {value.shape[0]}")
    return value.to(dtype).contiguous()


def _random(seed, offset, rows, increment, generator, device):
    """What tells draws apart: numbers, or tensors [rows]. A tensor's rows are told apart by the high bits of the offset."""
    if seed is None or offset is None:
        return get_seed_and_offset(increment, generator, device)
    if not isinstance(seed, torch.Tensor) and not isinstance(offset, torch.Tensor):
        return seed, offset
    seed, offset = (x if isinstance(x, torch.Tensor) else torch.tensor([x], device=device) for x in (seed, offset))
    for name, x in (("seed", seed), ("offset", offset)):
        if x.dim() != 1 or x.shape[0] not in (1, rows):
            raise ValueError(f"{name}: expected a 1D tensor of length 1 or {rows}, found shape {tuple(x.shape)}")
    place = torch.arange(rows, device=device) << 40
    seed, offset = (x.view(torch.int64) if x.dtype != torch.int64 else x for x in (seed, offset))
    return seed.expand(rows).contiguous(), offset + place


def _check_nan(input, wanted, what):
    if wanted and torch.isnan(input).any():
        raise ValueError(f"Input {what} contains NaN.")


def _draw(input, *, probs, indices, seed, offset, generator, increment, top_k=0, top_p=1.0, min_p=0.0, joint=False,
          return_valid=False):
    rows = input.shape[0]
    top_k = _threshold(top_k, rows, torch.int32, "top_k")
    top_p = _threshold(top_p, rows, torch.float32, "top_p")
    min_p = _threshold(min_p, rows, torch.float32, "min_p")
    row_ids = None
    if indices is not None:
        rows, row_ids = indices.shape[0], indices.int()
        top_k, top_p, min_p = (x[indices.long()] if isinstance(x, torch.Tensor) else x for x in (top_k, top_p, min_p))
    seed, offset = _random(seed, offset, rows, increment(rows), generator, input.device)
    tokens = ops.sample(input.float() if probs else input, probs=probs, top_k=top_k, top_p=top_p, min_p=min_p, joint=joint,
                        seed=seed, offset=offset, row_ids=row_ids)
    valid = tokens >= 0 if return_valid else None
    tokens = tokens.clamp_(min=0)  # a row without mass, or with NaN
    if indices is not None:
        tokens = tokens.to(indices.dtype)
    return (tokens, valid) if return_valid else tokens


def _per_row(times=1):
    return lambda rows: times * rows


@api
def softmax(logits, temperature=None, enable_pdl=None):
    """softmax(logits / temperature), float32."""
    temperature = _threshold(1.0 if temperature is None else temperature, logits.shape[0], torch.float32, "temperature")
    return ops.softmax(logits, temperature)


@api
def sampling_from_logits(logits, indices=None, deterministic=True, generator=None, check_nan=False, seed=None, offset=None):
    """Draws a word per row from softmax(logits): int32, or indices' dtype."""
    _check_nan(logits, check_nan, "logits")
    return _draw(logits, probs=False, indices=indices, seed=seed, offset=offset, generator=generator,
                 increment=_per_row(logits.shape[-1]))


@api
def sampling_from_probs(probs, indices=None, deterministic=True, generator=None, check_nan=False, seed=None, offset=None,
                        return_valid=False):
    """Draws a word per row; return_valid: also bool, False for rows without mass or with NaN, which give word 0."""
    _check_nan(probs, check_nan, "probs")
    return _draw(probs, probs=True, indices=indices, seed=seed, offset=offset, generator=generator, increment=_per_row(),
                 return_valid=return_valid)


@api
def top_p_sampling_from_probs(probs, top_p, indices=None, deterministic=True, generator=None, check_nan=False, seed=None,
                              offset=None, return_valid=False):
    """Draws from the likeliest words whose mass reaches top_p."""
    _check_nan(probs, check_nan, "probs")
    return _draw(probs, probs=True, top_p=top_p, indices=indices, seed=seed, offset=offset, generator=generator,
                 increment=_per_row(32), return_valid=return_valid)


@api
def top_k_sampling_from_probs(probs, top_k, indices=None, deterministic=True, generator=None, check_nan=False, seed=None,
                              offset=None, return_valid=False):
    """Draws from the top_k likeliest words."""
    _check_nan(probs, check_nan, "probs")
    return _draw(probs, probs=True, top_k=top_k, indices=indices, seed=seed, offset=offset, generator=generator,
                 increment=_per_row(32), return_valid=return_valid)


@api
def min_p_sampling_from_probs(probs, min_p, indices=None, deterministic=True, generator=None, check_nan=False, seed=None,
                              offset=None, return_valid=False):
    """Draws from the words of at least min_p times the largest probability."""
    _check_nan(probs, check_nan, "probs")
    return _draw(probs, probs=True, min_p=min_p, indices=indices, seed=seed, offset=offset, generator=generator,
                 increment=_per_row(), return_valid=return_valid)


def _is_joint(filter_apply_order):
    if filter_apply_order not in ("top_k_first", "joint"):
        raise ValueError(f"filter_apply_order: expected 'top_k_first' or 'joint', found {filter_apply_order!r}")
    return filter_apply_order == "joint"


@api
def top_k_top_p_sampling_from_logits(logits, top_k, top_p, indices=None, filter_apply_order="top_k_first",
                                     deterministic=True, generator=None, check_nan=False, seed=None, offset=None):
    """Draws from softmax(logits) under both filters. top_k_first: top-k, renormalise, top-p; joint: a word passes both.

    The words are those that the functions for the single steps draw with the same seed and offset."""
    joint = _is_joint(filter_apply_order)
    _check_nan(logits, check_nan, "logits")
    if not joint:
        logits, top_k = torch.where(_top_k_kept(logits, top_k), logits, -math.inf), 0
    return _draw(ops.softmax(logits), probs=True, top_k=top_k, top_p=top_p, joint=joint, indices=indices, seed=seed,
                 offset=offset, generator=generator, increment=_per_row(32))


@api
def top_k_top_p_sampling_from_probs(probs, top_k, top_p, indices=None, filter_apply_order="top_k_first",
                                    deterministic=True, generator=None, check_nan=False, seed=None, offset=None,
                                    return_valid=False):
    """top_k_top_p_sampling_from_logits on probabilities."""
    joint = _is_joint(filter_apply_order)
    _check_nan(probs, check_nan, "probs")
    return _draw(probs, probs=True, top_k=top_k, top_p=top_p, joint=joint, indices=indices, seed=seed, offset=offset,
                 generator=generator, increment=_per_row(32), return_valid=return_valid)


def _with_ties(kept, x):
    """kept, and what equals the smallest kept value of its row."""
    smallest = torch.where(kept, x, math.inf).amin(-1, keepdim=True)
    return x >= smallest


def _renormalise(probs, kept):
    masses = torch.where(kept, probs.float(), 0.0)
    return masses / masses.sum(-1, keepdim=True)


@api
def top_p_renorm_probs(probs, top_p, is_deterministic=False):
    """probs of the likeliest words whose mass reaches top_p, renormalised, float32; others 0."""
    top_p = _threshold(top_p, probs.shape[0], torch.float32, "top_p")
    probs = probs.float()
    kept = ops.filter_probs(probs, probs=True, top_p=top_p) > 0
    return _renormalise(probs, _with_ties(kept, probs))


def _top_k_kept(x, top_k):
    # Ranked as logits: a filter of probabilities would drop words of mass below 2^-40.
    top_k = _threshold(top_k, x.shape[0], torch.int32, "top_k")
    return _with_ties(ops.mask_logits(x, top_k=top_k) != -math.inf, x)


@api
def top_k_renorm_probs(probs, top_k, is_deterministic=False):
    """The top_k likeliest words of each row, renormalised, in probs' dtype; others 0."""
    return _renormalise(probs, _top_k_kept(probs, top_k)).to(probs.dtype)


@api
def top_k_mask_logits(logits, top_k):
    """logits with -inf outside the top_k largest of each row, in their dtype."""
    return torch.where(_top_k_kept(logits, top_k), logits, -math.inf)


top_p_renorm_prob, top_k_renorm_prob = top_p_renorm_probs, top_k_renorm_probs


@api
def chain_speculative_sampling(draft_probs, draft_token_ids, target_probs, maybe_output_accepted_token_num=None,
                               maybe_output_emitted_draft_token_num=None, deterministic=True, generator=None, seed=None,
                               offset=None):
    """Speculative sampling of a chain (Leviathan et al., arXiv 2211.17192).

    draft_probs [B, n, V], draft_token_ids [B, n], target_probs [B, n + 1, V]. A draft word is accepted with probability
    min(1, target / draft); at the first refusal a word is drawn from relu(target - draft), after n acceptances from
    target[n]. -> (tokens int32 [B, n + 1], -1 after the drawn word; accepted int32 [B], draft words judged one by one;
    emitted int32 [B], the accepted prefix). Given counters are added to."""
    batch, n, vocab = draft_probs.shape
    device = draft_probs.device
    seed, offset = _random(seed, offset, batch, batch * (n + 1), generator, device)
    ids = draft_token_ids.long().unsqueeze(-1)
    draft, target = (p[:, :n].gather(-1, ids).squeeze(-1).float() for p in (draft_probs, target_probs))
    chance = torch.where(target >= draft, (target > 0).float(), target / draft)
    coins = torch.stack([chance, 1 - chance], -1).view(batch * n, 2)
    # Coins and words take random numbers of their own: the top bit of the offset tells them apart.
    coin_seed, coin_offset = _coin_random(seed, offset, n, device)
    accept = ops.sample(coins, probs=True, seed=coin_seed, offset=coin_offset).view(batch, n) == 0
    prefix = accept.int().cumprod(-1).bool()
    emitted = prefix.sum(-1)
    at = emitted[:, None, None].expand(-1, 1, vocab)
    left = target_probs.gather(1, at).squeeze(1).float()
    if n:
        minus = draft_probs.gather(1, at.clamp(max=n - 1)).squeeze(1).float()
        left = torch.where((emitted < n)[:, None], (left - minus).clamp_(min=0), left)
    # Where rounding left nothing of the difference, the target itself is drawn from.
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, target_probs.gather(1, at).squeeze(1).float())
    word = ops.sample(left, probs=True, seed=seed, offset=offset).clamp_(min=0)
    tokens = torch.full((batch, n + 1), -1, dtype=torch.int32, device=device)
    tokens[:, :n] = torch.where(prefix, draft_token_ids.int(), -1)
    tokens.scatter_(1, emitted[:, None], word[:, None])
    counters = []
    for given, count in ((maybe_output_accepted_token_num, accept.sum(-1)), (maybe_output_emitted_draft_token_num, emitted)):
        counters.append(count.int() if given is None else given.add_(count.to(given.dtype)))
    return (tokens, *counters)


def _coin_random(seed, offset, n, device):
    if not isinstance(seed, torch.Tensor):
        return seed, offset ^ (1 << 63)
    place = torch.arange(1, n + 1, device=device) << 56
    return seed.repeat_interleave(n), (offset[:, None] + place).view(-1)


__getattr__ = _absent.lookup("sampling")
