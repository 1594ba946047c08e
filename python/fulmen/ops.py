"""The ops around attention, one function each.

Every function takes tensors of any library with `__dlpack__` (numpy, torch, ...), on the CPU or on a GPU. `out`
arguments left out are made beside the first tensor. `context` defaults to the process's context of that tensor's
device, `stream` to torch's current stream for torch's CUDA tensors. numpy has no bf16: wrap its uint16 arrays as
`fulmen.Typed(array, "bf16")`. Errors are `fulmen.InvalidArgument` and `fulmen.Unsupported`, which name the argument.
"""
from typing import Any, Mapping, Optional, Tuple, Union

from . import _binding
from ._arrays import Tensor, compiling, context_of, empty_like, shape_of, stream_of
from ._binding import Context

Number = Union[int, float, Tensor]

__all__ = ["append_kv", "merge_states", "merge_state", "rope", "rope_append", "rms_norm", "gemma_rms_norm",
           "add_rms_norm", "layer_norm", "silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "softmax", "argmax", "sample",
           "filter_probs", "mask_logits", "top_k"]


def _place(x, context, stream):
    if compiling():
        return None, None
    return context_of(x) if context is None else context, stream_of(x) if stream is None else stream


def _call(name, context, *args):
    """The binding's function, or while torch.compile traces the custom op of that name."""
    if compiling():
        from . import _torch_ops
        _torch_ops.call(name, args[:-1])
    else:
        getattr(_binding, name)(context, *args)


def append_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, slot_mapping: Optional[Tensor] = None,
              qo_indptr: Optional[Tensor] = None, kv_len: Optional[Tensor] = None,
              last_page_len: Optional[Tensor] = None, table: Optional[Union[Tensor, Mapping[str, Tensor]]] = None,
              context: Optional[Context] = None, stream: Optional[int] = None) -> None:
    """Writes new keys and values into a paged cache, in place.

    k, v              [num_tokens, num_kv_heads, head_dim]   f32 | f16 | bf16
    k_cache, v_cache  [num_pages, page_size, num_kv_heads, head_dim], any strides (HND: a permuted view)
    Where to: slot_mapping i64 [num_tokens] (page * page_size + offset, negative: skip), or per request: the rows
    qo_indptr[r] .. of k go to the last positions of kv_len[r] through `table` (a 2-D block table, or a dict with
    table, indptr, row_index); with indptr and last_page_len instead of kv_len where lengths are counted in pages.
    Errors: InvalidArgument where both or neither place is given, or shapes, dtypes or strides don't fit. Slots outside the cache
    are skipped.
    Source: paged caches, Kwon et al., arXiv 2309.06180.
    """
    context, stream = _place(k, context, stream)
    _call("append_kv", context, k, v, k_cache, v_cache, slot_mapping, qo_indptr, kv_len, last_page_len, table, stream)


def merge_states(part_o: Tensor, part_lse: Tensor, *, out: Optional[Tensor] = None, lse: Optional[Tensor] = None,
                 lse_base2: bool = False, context: Optional[Context] = None,
                 stream: Optional[int] = None) -> Tuple[Tensor, Tensor]:
    """o[r,h,:] = sum_p exp(part_lse[p,r,h] - lse[r,h]) part_o[p,r,h,:]; parts are added in index order.

    part_o    [num_parts, num_rows, num_heads, head_dim]
    part_lse  f32 [num_parts, num_rows, num_heads], natural logarithm, -inf: an empty part; all in base 2 with lse_base2
    -> (o, lse): [num_rows, num_heads, head_dim] of part_o's dtype (f32 | f16 | bf16), f32 [num_rows, num_heads]
    Errors: InvalidArgument where shapes, dtypes or strides don't fit.
    Source: Ye et al., arXiv 2501.01005, section 2.2.
    """
    context, stream = _place(part_o, context, stream)
    shape = shape_of(part_o)
    out = empty_like(part_o, shape[1:]) if out is None else out
    lse = empty_like(part_lse, shape[1:3], "f32") if lse is None else lse
    _call("merge_states", context, part_o, part_lse, out, lse, lse_base2, stream)
    return out, lse


def merge_state(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor, *, out: Optional[Tensor] = None,
                lse: Optional[Tensor] = None, lse_base2: bool = False, context: Optional[Context] = None,
                stream: Optional[int] = None) -> Tuple[Tensor, Tensor]:
    """Joins two attention states over disjoint keys. o [num_rows, num_heads, head_dim], lse f32 [num_rows, num_heads], natural
    logarithms or with lse_base2 in base 2. `out` and `lse` may be o_a and lse_a. -> (o, lse)

    Errors: InvalidArgument where shapes, dtypes (o: f32 | f16 | bf16) or strides don't fit.
    Source: Ye et al., arXiv 2501.01005, section 2.2."""
    context, stream = _place(o_a, context, stream)
    out = empty_like(o_a) if out is None else out
    lse = empty_like(lse_a) if lse is None else lse
    _call("merge_state", context, o_a, lse_a, o_b, lse_b, out, lse, lse_base2, stream)
    return out, lse


def rope(q: Tensor, k: Optional[Tensor] = None, *, positions: Tensor, cos_sin_cache: Optional[Tensor] = None,
         q_out: Optional[Tensor] = None, k_out: Optional[Tensor] = None, context: Optional[Context] = None,
         stream: Optional[int] = None, **params: Any) -> Tuple[Tensor, Optional[Tensor]]:
    """Rotates q and k by their positions; in place unless q_out (k_out) is given.

    q, k           [num_tokens, num_heads, head_dim] f32 | f16 | bf16; heads and strides of k may be others
    positions      i32 | i64 [num_tokens]
    cos_sin_cache  f32 [max_position, rotary_dim], cos in the first half, sin in the second; overrides the params:
    rotary_dim (0: all), interleaved, scaling ("none", "linear", "llama31", "yarn"), theta, factor, low_freq_factor,
    high_freq_factor, beta_fast, beta_slow, attention_factor, original_context
    -> (q, k) as rotated
    Errors: InvalidArgument where shapes, dtypes, strides or params don't fit; TypeError for a param of another name.
    Source: Su et al., arXiv 2104.09864; YaRN: Peng et al., arXiv 2309.00071.
    """
    context, stream = _place(q, context, stream)
    _call("rope", context, q, k, q_out, k_out, positions, cos_sin_cache, params or None, stream)
    return q if q_out is None else q_out, k if k_out is None else k_out


def rope_append(q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, *, positions: Tensor,
                cos_sin_cache: Optional[Tensor] = None, q_out: Optional[Tensor] = None, slot_mapping: Optional[Tensor] = None,
                qo_indptr: Optional[Tensor] = None, kv_len: Optional[Tensor] = None, last_page_len: Optional[Tensor] = None,
                table: Optional[Union[Tensor, Mapping[str, Tensor]]] = None, context: Optional[Context] = None,
                stream: Optional[int] = None, **params: Any) -> Tensor:
    """rope and append_kv of the same tokens in one pass: q is rotated (in place unless q_out is given), k is rotated on its
    way into the cache and v goes there as it is. -> q

    Tensors and places are those of `append_kv`, angles those of `rope`: q [num_tokens, num_qo_heads, head_dim], k, v
    [num_tokens, num_kv_heads, head_dim]; k itself isn't written.
    Errors: those of `rope` and `append_kv`.
    Source: those of `rope` and `append_kv`."""
    context, stream = _place(q, context, stream)
    _call("rope_append", context, q, k, v, k_cache, v_cache, q_out, positions, cos_sin_cache, slot_mapping, qo_indptr, kv_len,
                         last_page_len, table, params or None, stream)
    return q if q_out is None else q_out


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, *, weight_offset: float = 0.0,
             out: Optional[Tensor] = None, context: Optional[Context] = None, stream: Optional[int] = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * (weight + weight_offset) over the last dimension.

    x [num_tokens, hidden] or [num_tokens, num_heads, head_dim], f32 | f16 | bf16, rows any stride apart; weight [hidden] of x's
    dtype or f32. -> as x; `out` may be x.
    Errors: InvalidArgument where shapes, dtypes or strides don't fit.
    Source: Zhang, Sennrich, arXiv 1910.07467."""
    context, stream = _place(x, context, stream)
    out = empty_like(x) if out is None else out
    _call("rms_norm", context, x, weight, None, out, eps, weight_offset, stream)
    return out


def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, *, out: Optional[Tensor] = None,
                   context: Optional[Context] = None, stream: Optional[int] = None) -> Tensor:
    """rms_norm with weight + 1: x [num_tokens, hidden] or [num_tokens, num_heads, head_dim], weight [hidden].

    Errors: those of `rms_norm`.
    Source: Gemma's published code; Zhang, Sennrich, arXiv 1910.07467."""
    return rms_norm(x, weight, eps, weight_offset=1.0, out=out, context=context, stream=stream)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6, *, weight_offset: float = 0.0,
                 out: Optional[Tensor] = None, context: Optional[Context] = None,
                 stream: Optional[int] = None) -> Tensor:
    """residual += x, in place; out = rms_norm(residual), into x unless `out` is given.

    x, residual [num_tokens, hidden], f32 | f16 | bf16, rows any stride apart; weight [hidden] of x's dtype or f32. What is
    normalised is the residual as stored, rounded to its dtype.
    Errors: InvalidArgument where shapes, dtypes or strides don't fit.
    Source: Zhang, Sennrich, arXiv 1910.07467."""
    context, stream = _place(x, context, stream)
    out = x if out is None else out
    _call("rms_norm", context, x, weight, residual, out, eps, weight_offset, stream)
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, eps: float = 1e-5, *,
               out: Optional[Tensor] = None, context: Optional[Context] = None,
               stream: Optional[int] = None) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension.

    x [num_tokens, hidden] or [num_tokens, num_heads, head_dim], f32 | f16 | bf16; weight, bias [hidden] of x's dtype or f32.
    Errors: InvalidArgument where shapes, dtypes or strides don't fit.
    Source: Ba, Kiros, Hinton, arXiv 1607.06450."""
    context, stream = _place(x, context, stream)
    out = empty_like(x) if out is None else out
    _call("layer_norm", context, x, weight, bias, out, eps, stream)
    return out


def _gated(x, activation, out, context, stream):
    context, stream = _place(x, context, stream)
    if out is None:
        *lead, width = shape_of(x)
        out = empty_like(x, (*lead, width // 2))
    _call("act_and_mul", context, x, out, activation, stream)
    return out


def silu_and_mul(x: Tensor, *, out: Optional[Tensor] = None, context: Optional[Context] = None,
                 stream: Optional[int] = None) -> Tensor:
    """silu(x[:, :d]) * x[:, d:].

    x [num_tokens, 2 d], f32 | f16 | bf16, rows any stride apart -> [num_tokens, d].
    Errors: InvalidArgument where 2 d is odd, or shapes, dtypes or strides don't fit.
    Source: Shazeer, arXiv 2002.05202."""
    return _gated(x, 0, out, context, stream)


def gelu_and_mul(x: Tensor, *, out: Optional[Tensor] = None, context: Optional[Context] = None,
                 stream: Optional[int] = None) -> Tensor:
    """gelu(x[:, :d]) * x[:, d:], with the error function.

    x [num_tokens, 2 d], f32 | f16 | bf16, rows any stride apart -> [num_tokens, d].
    Errors: InvalidArgument where 2 d is odd, or shapes, dtypes or strides don't fit.
    Source: Shazeer, arXiv 2002.05202; Hendrycks, Gimpel, arXiv 1606.08415."""
    return _gated(x, 1, out, context, stream)


def gelu_tanh_and_mul(x: Tensor, *, out: Optional[Tensor] = None, context: Optional[Context] = None,
                      stream: Optional[int] = None) -> Tensor:
    """gelu(x[:, :d]) * x[:, d:], with the tanh approximation.

    x [num_tokens, 2 d], f32 | f16 | bf16, rows any stride apart -> [num_tokens, d].
    Errors: InvalidArgument where 2 d is odd, or shapes, dtypes or strides don't fit.
    Source: Shazeer, arXiv 2002.05202; Hendrycks, Gimpel, arXiv 1606.08415."""
    return _gated(x, 2, out, context, stream)


def softmax(logits: Tensor, temperature: Number = 1.0, *, out: Optional[Tensor] = None,
            context: Optional[Context] = None, stream: Optional[int] = None) -> Tensor:
    """softmax(logits / temperature) in f32; temperature is a number or f32 [num_rows]. logits [num_rows, vocab].

    logits are f32 | f16 | bf16, rows any stride apart; the number 0 as temperature means 1.
    Errors: InvalidArgument where shapes, dtypes, strides or the number don't fit. A row with NaN, or whose temperature[i] isn't
    above 0, gives NaN.
    Source: its largest value is taken off first; Milakov, Gimelshein, arXiv 1805.02867."""
    context, stream = _place(logits, context, stream)
    out = empty_like(logits, dtype="f32") if out is None else out
    _call("softmax", context, logits, out, temperature, stream)
    return out


def argmax(x: Tensor, *, out: Optional[Tensor] = None, context: Optional[Context] = None,
           stream: Optional[int] = None) -> Tensor:
    """Index of the largest value of each row, the lowest where several are; -1 for a row with NaN. x [num_rows, n] -> i32.

    x is f32 | f16 | bf16, rows any stride apart; out i32 [num_rows].
    Errors: InvalidArgument where shapes, dtypes or strides don't fit.
    Source: the definition."""
    context, stream = _place(x, context, stream)
    out = empty_like(x, shape_of(x)[:1], "i32") if out is None else out
    _call("argmax", context, x, out, stream)
    return out


def sample(input: Tensor, *, probs: bool = False, temperature: Number = 1.0, top_k: Number = 0, top_p: Number = 1.0,
           min_p: Number = 0.0, joint: bool = False, seed: Number = 0, offset: Number = 0,
           row_ids: Optional[Tensor] = None, logprob: Optional[Tensor] = None, out: Optional[Tensor] = None,
           context: Optional[Context] = None, stream: Optional[int] = None) -> Tensor:
    """Draws a word per row, exactly: i32 [num_rows], -1 for a row with NaN or parameters out of range.

    input        logits [num_rows, vocab] f32 | f16 | bf16, or with probs=True probabilities (f32)
    temperature, top_k, top_p, min_p   numbers, or tensors [num_rows]; temperature 0 is argmax
    joint        False: top-k, renormalise, top-p on what is left, min-p. True: a word must pass all on its own.
    seed, offset numbers or i64 [num_rows]; the same seed and offset draw the same word on every device
    row_ids      i32 [num_outputs]: output i draws from row row_ids[i]; left out: from row i
    logprob      f32 [num_rows] to fill with the word's log-probability before filtering
    Errors: InvalidArgument where shapes, dtypes, strides or numbers don't fit; tensors out of range make their rows -1.
    Source: docs/sampling.md; random numbers: Salmon et al., SC 2011; top-p: Holtzman et al., arXiv 1904.09751; min-p: Nguyen et
    al., arXiv 2407.01082.
    """
    context, stream = _place(input, context, stream)
    if out is None:
        out = empty_like(input, shape_of(input)[:1] if row_ids is None else shape_of(row_ids), "i32")
    _call("sample", context, input, probs, out, logprob, temperature, top_k, top_p, min_p, joint, seed, offset, row_ids, stream)
    return out


def filter_probs(input: Tensor, *, probs: bool = False, temperature: Number = 1.0, top_k: Number = 0,
                 top_p: Number = 1.0, min_p: Number = 0.0, joint: bool = False, out: Optional[Tensor] = None,
                 context: Optional[Context] = None, stream: Optional[int] = None) -> Tensor:
    """The distribution that `sample` draws from: renormalised probabilities, f32 [num_rows, vocab].

    input and filters are those of `sample`.
    Errors: InvalidArgument where shapes, dtypes, strides or numbers don't fit. A row with NaN, or with a filter's tensor out of
    range there, gives NaN.
    Source: that of `sample`."""
    context, stream = _place(input, context, stream)
    out = empty_like(input, dtype="f32") if out is None else out
    _call("filter", context, input, probs, False, out, temperature, top_k, top_p, min_p, joint, stream)
    return out


def mask_logits(logits: Tensor, *, temperature: Number = 1.0, top_k: Number = 0, top_p: Number = 1.0,
                min_p: Number = 0.0, joint: bool = False, out: Optional[Tensor] = None,
                context: Optional[Context] = None, stream: Optional[int] = None) -> Tensor:
    """logits with -inf where `sample` would never draw, f32 [num_rows, vocab].

    logits [num_rows, vocab] f32 | f16 | bf16; filters are those of `sample`.
    Errors: those of `filter_probs`.
    Source: that of `sample`."""
    context, stream = _place(logits, context, stream)
    out = empty_like(logits, dtype="f32") if out is None else out
    _call("filter", context, logits, False, True, out, temperature, top_k, top_p, min_p, joint, stream)
    return out


def top_k(x: Tensor, k: int, *, values: Optional[Tensor] = None, indices: Optional[Tensor] = None,
          context: Optional[Context] = None, stream: Optional[int] = None) -> Tuple[Tensor, Tensor]:
    """The k largest of each row, descending, ties by lowest index. x [num_rows, n] -> (values [num_rows, k], indices i32).

    x is f32 | f16 | bf16, rows any stride apart; values are of its dtype, indices i32 [num_rows, k].
    Errors: InvalidArgument where k > n, or shapes, dtypes or strides don't fit.
    Source: selection by radix, Alabi et al., *Fast k-selection algorithms for graphics processors* (2012)."""
    context, stream = _place(x, context, stream)
    values = empty_like(x, (shape_of(x)[0], k)) if values is None else values
    indices = empty_like(x, (shape_of(x)[0], k), "i32") if indices is None else indices
    _call("top_k", context, x, values, indices, stream)
    return values, indices
