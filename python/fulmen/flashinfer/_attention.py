"""One attention call for all wrappers: lengths become a fulmen plan, tensors a fulmen run.

A `Batch` is what a wrapper's plan() makes: where rows and keys lie. Causality, window and features are asked for by each
run (clients set them as attributes between the two), so a Batch plans a handle when it first meets one. Handles are
shared by all wrappers; plan and scratch memory belong to one wrapper each (`Memory`), so that runs of different wrappers
may overlap. Nothing here reads a CUDA tensor: what the host doesn't hold is bounded by the sizes of the index tensors.
"""
import functools
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .. import _binding
from .._arrays import context_of
from ._api import refuse

LOG2E = math.log2(math.e)
_UNKNOWN_ROWS = 1 << 20  # query rows of a step where only the device knows their number
_MAX_KEYS = (1 << 31) - 512
_INDICES = torch.int32, torch.int64
_MEMORIES = 16  # handles that a wrapper keeps memory for


# ------------------------------------------------------------------------------------------------ dtypes
_SHORT = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
_NAMES = {"half": torch.float16, "float": torch.float32}


def to_dtype(dtype):
    """A torch.dtype, or its name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    found = _NAMES.get(dtype) or getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if not isinstance(found, torch.dtype):
        raise TypeError(f"dtype: expected a torch.dtype or its name, found {dtype!r}")
    return found


def check_dtypes(q, kv, o):
    """Refuses what no kernel reads yet, in one error."""
    for dtype in (q, kv, o):
        if dtype in _SHORT:
            continue
        if "float8" in str(dtype):
            refuse("fp8 attention")
        if dtype == torch.uint8:
            refuse("NVFP4 KV caches")
        refuse(f"attention on {dtype}")
    if q != kv:
        refuse(f"attention of {q} queries over {kv} keys")


# ------------------------------------------------------------------------------------------------ index tensors
def stream_of(device):
    """The current stream of a tensor's device, without an object around it."""
    return torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else None


def on_host(*tensors):
    return all(not t.is_cuda for t in tensors)


def _flat(tensors):
    """As the binding packs them."""
    return [t if t.dtype in _INDICES and t.dim() == 1 else t.reshape(-1).to(torch.int32) for t in tensors]


def _pinned(size):
    """Pinned memory of torch's, which is reused only when the copies from it have ended."""
    if torch.cuda.is_current_stream_capturing():
        raise ValueError("index tensors: expected tensors on the device during CUDA graph capture, found host tensors")
    return torch.empty(size, dtype=torch.int32, pin_memory=True)


class Upload:
    """Index tensors on a device: those of the host in one copy, those of the device as they are. The caller may overwrite
    his at once.

    The memory of the last ones is taken again where the sizes are the same: work before this on the stream has read it."""

    def __init__(self, device):
        self.device, self._cuda, self._size, self._sizes, self._pieces = device, device.type == "cuda", 0, None, ()

    def __call__(self, *tensors):
        host = [t for t in tensors if not t.is_cuda] if self._cuda else tensors
        if not host:
            return [_index(t) for t in tensors]
        if self._sizes is None or not self._fill(host):
            host = _flat(host)
            self._sizes = [t.shape[0] for t in host]
            self._size = sum(self._sizes)
            self._memory = torch.empty(self._size, dtype=torch.int32, device=self.device)
            self._pieces = self._memory.split(self._sizes)
            self._fill(host)
        if len(host) == len(tensors):
            return self._pieces
        pieces = iter(self._pieces)
        return [_index(t) if t.is_cuda else next(pieces) for t in tensors]

    def _fill(self, host):
        """-> False where the sizes are others"""
        if not self._cuda:
            return _binding.pack_indices(self._memory, host, self._sizes)
        staged = _pinned(self._size)
        if not _binding.pack_indices(staged, host, self._sizes):
            return False
        self._memory.copy_(staged, non_blocking=True)
        return True


def upload(device, *tensors):
    """`Upload` into memory of its own."""
    return Upload(device)(*tensors)


def _index(t):
    return (t if t.dtype in _INDICES else t.to(torch.int32)).contiguous()


def fill(buffers, sources):
    """The heads of a caller's buffers, filled: graphs that read the buffers see it."""
    host = [s for b, s in zip(buffers, sources) if b.is_cuda and not s.is_cuda]
    pieces = iter(())
    if host:
        host = _flat(host)
        sizes = [t.shape[0] for t in host]
        staged = _pinned(sum(sizes))
        _binding.pack_indices(staged, host, sizes)
        pieces = iter(staged.split(sizes))
    heads = [buffer[:source.numel()] for buffer, source in zip(buffers, sources)]
    for head, source in zip(heads, sources):
        if head.is_cuda and not source.is_cuda:
            source = next(pieces)
        if source.data_ptr() != head.data_ptr():
            head.copy_(source, non_blocking=True)
    return heads


def paged_lengths(indptr, last_page_len, page_size):
    """Keys of each request: 0 without pages, whatever last_page_len says."""
    pages = indptr[1:].long() - indptr[:-1]
    return torch.where(pages > 0, (pages - 1) * page_size + last_page_len.to(pages.device), torch.zeros_like(pages))


def prefix_sum(lengths):
    return torch.nn.functional.pad(torch.cumsum(lengths, 0), (1, 0))


# ------------------------------------------------------------------------------------------------ masks
def bits_where(lengths, num_bytes, visible):
    """Packs a predicate over the elements of each request, which begins on a byte of its own.

    lengths i64 [B] elements of each request; num_bytes: at least what they take; visible(request, element) -> bool of
    index tensors. -> (u8 [num_bytes], byte offsets i64 [B + 1])"""
    indptr = prefix_sum((lengths + 7) // 8)
    at = torch.arange(num_bytes, device=lengths.device)
    request = torch.searchsorted(indptr[1:].contiguous(), at, right=True).clamp_(max=max(len(lengths) - 1, 0))
    first, end = (at - indptr[request]) * 8, lengths[request]
    bits = torch.zeros(num_bytes, dtype=torch.uint8, device=lengths.device)
    for i in range(8):
        element = first + i
        inside = element < end
        bits |= (visible(request, torch.where(inside, element, torch.zeros_like(element))) & inside).to(torch.uint8) << i
    return bits, indptr


def pack_mask(mask, lengths):
    """bool, all requests concatenated -> as bits_where."""
    mask = mask.reshape(-1)
    starts = prefix_sum(lengths)
    if mask.numel() == 0:
        return torch.zeros(1, dtype=torch.uint8, device=mask.device), torch.zeros_like(starts)
    last = mask.numel() - 1
    return bits_where(lengths, mask.numel() // 8 + len(lengths), lambda r, e: mask[(starts[r] + e).clamp_(max=last)])


def _of_no_graph(device, make):
    """make(), for what outlives the call. torch.compile's warm-up of a graph gives its thread the memory of the graph's pool, where
    nothing may stay that the graph does not give back; so another thread asks for it, on the same stream."""
    if device.type != "cuda":
        return make()
    found, stream = [], torch.cuda.current_stream(device)

    def ask():
        with torch.cuda.stream(stream):
            found.append(make())
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    if not found:  # out of memory, as a rule: the call itself says it better
        return make()
    return found[0]


@functools.lru_cache(maxsize=64)
def alibi_slopes(num_heads, device):
    """2^(-8 h / n) for the n heads of the largest power of two, then the odd steps of the sequence of twice as many."""
    n = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0**(-8 * h / n) for h in range(1, n + 1)] + [2.0**(-4 * m / n) for m in range(1, 2 * (num_heads - n), 2)]
    return _of_no_graph(torch.device(device), lambda: torch.tensor(slopes, dtype=torch.float32, device=device))


# ------------------------------------------------------------------------------------------------ handles and memory
class Kind(NamedTuple):
    """What a fulmen handle is made for, beside the limits."""
    q_dtype: str
    o_dtype: str
    head_dim_qk: int
    head_dim_vo: int
    num_qo_heads: int
    num_kv_heads: int
    causal: bool
    window_left: int
    features: tuple
    batch_invariant: bool


class Bounds(NamedTuple):
    """Upper bounds of a step."""
    requests: int
    rows: int
    qo_len: int
    kv_len: int
    levels: int = 1

    @functools.lru_cache(maxsize=256)
    def rounded(self):
        """Coarse classes, so that few handles serve all steps: only qo_len decides over a kernel, up to its tile's rows."""
        rows = _round_up(self.rows, 256, 4)
        qo_len = _round_up(self.qo_len) if self.qo_len <= 128 else rows
        return Bounds(_round_up(self.requests, 64, 3), rows, min(rows, qo_len), min(_round_up(self.kv_len, 4096), _MAX_KEYS),
                      self.levels)


def _round_up(n, least=1, bits=1):
    """To the next least * 2^(bits i)."""
    while least < n:
        least <<= bits
    return least


def bound_steps(indptr, otherwise):
    """The largest step of offsets that the host holds, else a bound."""
    return otherwise if indptr.is_cuda else _binding.last_and_longest_step(indptr)[1]


def bound_lengths(lengths, otherwise):
    """The largest length where the host holds them, else a bound."""
    return int(lengths.max()) if on_host(lengths) and lengths.numel() else otherwise


@functools.lru_cache(maxsize=512)
def _handle(context, kind, bounds):
    spec = {"q_dtype": kind.q_dtype, "o_dtype": kind.o_dtype, "head_dim_qk": kind.head_dim_qk,
            "head_dim_vo": kind.head_dim_vo, "features": kind.features, "batch_invariant": kind.batch_invariant}
    group = {"num_qo_heads": kind.num_qo_heads, "num_kv_heads": kind.num_kv_heads, "causal": kind.causal,
             "window_left": kind.window_left}
    limits = {"max_requests": bounds.requests, "max_rows": bounds.rows, "max_qo_len": bounds.qo_len,
              "max_kv_len": bounds.kv_len, "num_levels": bounds.levels, "groups": [group]}
    return _binding.AttentionHandle(context, spec, limits)


class Memory:
    """Plan and scratch memory of a wrapper, for each handle. A captured graph refers to it, so it stays where it is: of a
    graph wrapper (keep_all) for good, of others until many handles were met."""

    def __init__(self, device, keep_all=False):
        self.device, self.keep_all = device, keep_all
        self.context = context_of(torch.empty(0, dtype=torch.uint8, device=device))
        self._of = OrderedDict()

    def of(self, handle):
        found = self._of.get(handle)
        if found is None:
            if self.is_capturing():  # the graph's own: its zeros are written when it is replayed, not now
                return self._make(handle)
            found = _of_no_graph(self.device, lambda: self._make(handle))
            self._of[handle] = found
            if len(self._of) > _MEMORIES and not self.keep_all:
                self._of.popitem(last=False)
        return found

    def _make(self, handle):
        return (torch.empty(max(256, handle.plan_bytes), dtype=torch.uint8, device=self.device),
                torch.zeros(max(256, handle.scratch_bytes), dtype=torch.uint8, device=self.device))

    def is_capturing(self):
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class StreamMemory(Memory):
    """Of calls without a wrapper, on one stream. What the graphs captured on a stream refer to is one memory of each handle,
    which stays where it is for good, whichever thread captured them; so they are to be replayed one after another."""

    _captured = {}

    def of(self, handle):
        if not self.is_capturing():
            return super().of(handle)
        key = handle, stream_of(self.device)
        found = self._captured.get(key)
        if found is None:
            found = super().of(handle)
            if handle in self._of:
                self._captured[key] = found
        return found


# ------------------------------------------------------------------------------------------------ batches and runs
@dataclass
class Options:
    """What a run asks for beside tensors. mask: (bits, byte offsets), which replaces causality."""
    causal: bool = False
    window_left: int = -1
    logits_soft_cap: float = 0.0
    sm_scale: float = 0.0
    pos_encoding_mode: str = "NONE"
    rope_scale: float = None
    rope_theta: float = None
    batch_invariant: bool = False
    mask: tuple = None
    sinks: torch.Tensor = None

    def features(self):
        if not self.logits_soft_cap and self.pos_encoding_mode == "NONE" and self.sinks is None and self.mask is None:
            return ()
        wanted = {"soft_cap": (self.logits_soft_cap or 0) > 0, "alibi": self.pos_encoding_mode == "ALIBI",
                  "sinks": self.sinks is not None, "rope": self.pos_encoding_mode == "ROPE_LLAMA",
                  "custom_mask": self.mask is not None}
        return tuple(name for name, on in wanted.items() if on)

    def kind(self, q_dtype, o_dtype, head_dim_qk, head_dim_vo, num_qo_heads, num_kv_heads):
        o_dtype = q_dtype if o_dtype == q_dtype else torch.float32
        return Kind(_SHORT[q_dtype], _SHORT[o_dtype], head_dim_qk, head_dim_vo, num_qo_heads, num_kv_heads,
                    bool(self.causal) and self.mask is None, -1 if self.window_left is None else int(self.window_left),
                    self.features(), bool(self.batch_invariant))


class Batch:
    """Rows and keys of one step, on the device.

    qo_indptr [B + 1]; lengths: {"kv_len": [B]}, or {"kv_page_indptr": [B + 1], "last_page_len": [B]} with page_size.
    prefixes: the levels before, from the one that most rows share: each {"qo_indptr", and lengths}."""

    def __init__(self, memory, qo_indptr, lengths, bounds, page_size=1, like=None, prefixes=()):
        self.memory, self.qo_indptr, self.lengths, self.page_size = memory, qo_indptr, lengths, page_size
        self.prefixes = list(prefixes)
        self.bounds = bounds.rounded()
        self._planned, self._captured, self._memory_of = set(), set(), {}
        if memory.keep_all and like is not None:  # graphs that were captured with the earlier step read these
            for handle in like._planned:
                self._plan(handle)
            self._planned |= like._planned

    def take(self, qo_indptr, lengths, bounds, page_size):
        """Becomes the next step's batch, planned for nothing yet, where that is within the same bounds and no graph knows
        this one. -> whether it did"""
        if (self.memory.keep_all or page_size != self.page_size or bounds.rounded() != self.bounds
                or qo_indptr.shape[0] != self.qo_indptr.shape[0]):
            return False
        self.qo_indptr, self.lengths = qo_indptr, lengths
        self._planned.clear()
        return True

    def handle(self, kind, capturing=False):
        """The handle, planned for this step. A graph plans anew at its head: engines write the index buffers directly
        before a replay."""
        handle = _handle(self.memory.context, kind, self.bounds)
        planned = self._captured if capturing else self._planned
        if handle not in planned:
            self._plan(handle)
            planned.add(handle)
        if not capturing:
            self._captured.clear()
        return handle

    def memory_of(self, handle):
        """(plan, scratch) of a planned handle."""
        return self._memory_of[handle]

    def _plan(self, handle):
        memory = self._memory_of[handle] = self.memory.of(handle)
        handle.plan([*self.prefixes, {"qo_indptr": self.qo_indptr, **self.lengths}], self.page_size, memory[0],
                    stream_of(self.qo_indptr.device))

    @property
    def num_requests(self):
        return self.qo_indptr.numel() - 1

    def qo_lens(self):
        return self.qo_indptr[1:].long() - self.qo_indptr[:-1]

    def kv_lens(self):
        if "kv_len" in self.lengths:
            return self.lengths["kv_len"].long()
        return paged_lengths(self.lengths["kv_page_indptr"], self.lengths["last_page_len"], self.page_size)

    def request_of(self, num_rows):
        """The request of each query row."""
        rows = torch.arange(num_rows, device=self.qo_indptr.device, dtype=self.qo_indptr.dtype)
        ends = self.qo_indptr[1:].contiguous()
        return torch.searchsorted(ends, rows, right=True).clamp_(max=max(self.num_requests - 1, 0))


def attend(batch, options, q, k, v, table, *, v_table=None, out_dtype=None, out=None, lse=None, return_lse=False,
           v_scale=None, lse_base2=True):
    """-> out, or (out, lse in base 2 or natural).

    q [rows, Hq, D]; k, v [pages, page_size, Hkv, D] (any strides) or ragged [keys, Hkv, D]; table: of each level, as in
    fulmen.Attention.run; out, lse: written where given, out in out_dtype. v_scale multiplies the output."""
    out, lse = outputs(q, k, v, out_dtype, out, lse, return_lse)
    if q.shape[0] > 0 and q.shape[1] > 0:
        _attend(batch, options, q, k, v, table, v_table, out, lse, v_scale, lse_base2)
    return (out, lse) if return_lse else out


def outputs(q, k, v, out_dtype, out, lse, return_lse):
    """(out, lse): checked where given, else made where wanted."""
    out_dtype = out_dtype or (q.dtype if out is None else out.dtype)
    check_dtypes(q.dtype, k.dtype, out_dtype)
    shape = (*q.shape[:2], v.shape[-1])
    if out is None:
        out = torch.empty(shape, dtype=out_dtype, device=q.device)
    else:
        check_output("out", out, shape, out_dtype, q.device)
    if lse is not None:
        check_output("lse", lse, shape[:2], torch.float32, q.device)
    elif return_lse:
        lse = torch.empty(shape[:2], dtype=torch.float32, device=q.device)
    return out, lse


def _in_kernel(v_scale):
    """Is it a number that the kernel multiplies by? 0 means 1 there."""
    return isinstance(v_scale, (int, float)) and v_scale != 0 and math.isfinite(v_scale)


def _arguments(batch, options, q, k, v, table, v_table, out, v_scale):
    """-> (handle, (tables, plan, scratch), options of its run)"""
    kind = options.kind(q.dtype, out.dtype, q.shape[-1], v.shape[-1], q.shape[1], k.shape[-2])
    handle = batch.handle(kind, batch.memory.keep_all and q.is_cuda and torch.cuda.is_current_stream_capturing())
    rope = None
    if "rope" in kind.features:
        rope = {"theta": options.rope_theta or 1e4, "scaling": "linear", "factor": options.rope_scale or 1.0}
    mask, mask_indptr = options.mask or (None, None)
    return handle, (table if isinstance(table, list) else [table], *batch.memory_of(handle)), {
        "v_tables": None if v_table is None else [v_table], "page_size": k.shape[1] if k.dim() == 4 else 1,
        "sm_scale": options.sm_scale or 1e-30,  # 0 asks fulmen for its default
        "logits_soft_cap": options.logits_soft_cap if "soft_cap" in kind.features else 0.0,
        "alibi_slopes": alibi_slopes(q.shape[1], q.device) if "alibi" in kind.features else None,
        "sinks": options.sinks, "mask": mask, "mask_indptr": mask_indptr, "rope": rope,
        "o_scale": v_scale if _in_kernel(v_scale) else 1.0}


def _writes(q, out):
    """Does the kernel write this output itself?"""
    return out.dtype in (q.dtype, torch.float32) and out.stride(-1) == 1


def _attend(batch, options, q, k, v, table, v_table, out, lse, v_scale, lse_base2):
    to = out
    if not _writes(q, out):
        to = torch.empty(out.shape, dtype=q.dtype if out.dtype == q.dtype else torch.float32, device=q.device)
    handle, memory, more = _arguments(batch, options, q, k, v, table, v_table, out, v_scale)
    handle.run(q if q.stride(-1) == 1 else q.contiguous(), _present(k), _present(v), to, *memory, lse=lse, lse_base2=lse_base2,
               stream=stream_of(q.device), **more)
    if v_scale is not None and not _in_kernel(v_scale):
        to.mul_(v_scale)
    if to is not out:
        out.copy_(to)
    # The bias counts from the request's first row there, from its first key here; a sink fixes the scale that this shifts.
    alibi = more["alibi_slopes"]
    if lse is not None and alibi is not None and options.sinks is None:
        request = batch.request_of(q.shape[0])
        shift = (batch.kv_lens() - batch.qo_lens())[request].to(torch.float32)
        lse.add_(shift[:, None] * alibi * (LOG2E if lse_base2 else 1.0))


def prepare(batch, options, q, k, v, table, out, v_scale, given, hnd):
    """What makes this call again on other tensors, in base 2, or None where it takes more than the one kernel."""
    if (batch.memory.keep_all or q.numel() == 0 or k.numel() == 0 or q.stride(-1) != 1 or not _writes(q, out)
            or options.pos_encoding_mode == "ALIBI" or not (v_scale is None or _in_kernel(v_scale))):
        return None
    handle, memory, more = _arguments(batch, options, q, k, v, table, None, out, v_scale)
    return _binding.AttentionCall(handle, given, hnd, q, k, v, out, *memory, lse_base2=True, **more)


def _present(x):
    """A tensor without elements has no address; nothing of its stand-in is read."""
    return x if x.numel() else x.new_zeros([max(1, n) for n in x.shape])


def check_output(name, x, shape, dtype, device):
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"Invalid shape of {name}: expected {tuple(shape)}, found {tuple(x.shape)}")
    if x.dtype != dtype:
        raise ValueError(f"Invalid dtype of {name}: expected {dtype}, found {x.dtype}")
    if x.device != device:
        raise ValueError(f"Invalid device of {name}: expected {device}, found {x.device}")


# ------------------------------------------------------------------------------------------------ layouts
POS_ENCODING_MODES = ("NONE", "ROPE_LLAMA", "ALIBI")


def check_layout(kv_layout):
    if kv_layout not in ("NHD", "HND"):
        raise KeyError(f"Invalid kv_layout {kv_layout}")


def check_pos_encoding_mode(mode):
    if mode not in POS_ENCODING_MODES:
        raise KeyError(f"Invalid pos_encoding_mode {mode}")


def as_nhd(x, kv_layout):
    return x if kv_layout == "NHD" else x.transpose(-3, -2)


def unpack_paged(cache, kv_layout):
    """A paged cache -> (k, v), each [pages, page_size, Hkv, D]. Without a page dim the page size is 1; [pages, 1, ...]:
    K and V are the same memory."""
    if isinstance(cache, tuple):
        k, v = cache
    elif isinstance(cache, torch.Tensor) and cache.dim() in (4, 5):
        k, v = cache[:, 0], cache[:, -1]
    else:
        raise KeyError(f"Unrecognized paged_kv_cache type {type(cache)}, expect a single tensor or a tuple of tensors.")
    if k.dim() == 3:
        return k.unsqueeze(1), v.unsqueeze(1)
    return as_nhd(k, kv_layout), as_nhd(v, kv_layout)
