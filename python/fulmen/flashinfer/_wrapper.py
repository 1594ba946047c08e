"""What all batch wrappers share: workspaces, planned options as plain attributes that clients set, and one way to run."""
import math
import weakref

import torch

from .._arrays import compiling, give_name
from .._binding import same_arguments
from ._api import refuse
from ._attention import (Batch, Memory, Options, Upload, attend, check_dtypes, check_layout, check_output, check_pos_encoding_mode,
                         fill, outputs, prepare, stream_of, to_dtype)

INT_WORKSPACE = 8 << 20
BACKENDS = {"auto", "fa2", "fa3", "cudnn"}  # all mean the one implementation
UNKNOWN_KEYS = 1 << 22  # keys of a ragged request where only the device knows their number


def check_aligned(name, buffer):
    if buffer.data_ptr() % 16:
        raise ValueError(f"{name} must be 16-byte aligned")


def scaled(sm_scale, head_dim, *factors):
    """sm_scale (1 / sqrt(D) by default) times the host's factors."""
    scale = 1.0 / math.sqrt(head_dim) if sm_scale is None else float(sm_scale)
    for factor in factors:
        if factor is not None:
            scale *= float(factor)
    return scale


def wants_invariance(fixed_split_size, disable_split_kv):
    """Both options exist for batch invariance; engines say -1 for no fixed size."""
    return bool(disable_split_kv) or (fixed_split_size is not None and fixed_split_size > 0)


def csr(indptr, indices):
    return {"indptr": indptr, "table": indices if indices.numel() else indices.new_zeros(1)}


def sink_arguments(jit_args):
    """Is the user's variant the one with attention sinks? Others are refused."""
    if jit_args is None:
        return False
    if "AttentionSink" in str(jit_args[11]) and "sink" in jit_args[7]:
        return True
    refuse("user-written variants (their source needs FlashInfer's headers; fulmen.Attention takes a variant of its own form)")


class BatchWrapper:
    """Planned state lies in plain attributes: clients set them, and the next plan or run honours them.

    A run that differs from the last one in its tensors alone is made by what `prepare` kept of that, and a plan that asks
    for what the last one did looks at its batch alone. Whatever sets an attribute in between ends both."""

    _aligned_workspaces = False
    _ready = None  # (AttentionCall, the output's last dimension, its dtype)
    _asked = _kind = None  # the last plan's options, and the Kind that they come to

    def __setattr__(self, name, value):
        object.__setattr__(self, name, value)
        self.__dict__.update(_ready=None, _asked=None)

    def _set(self, **attributes):
        """Many attributes at once, which takes half the time."""
        self.__dict__.update(attributes, _ready=None, _asked=None)

    def _asks_again(self, asked):
        return self._asked is not None and same_arguments(asked, self._asked)

    def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, backend="auto", jit_args=None):
        check_layout(kv_layout)
        if backend not in BACKENDS:
            refuse(f"the {backend} backend")
        if self._aligned_workspaces:
            check_aligned("float_workspace_buffer", float_workspace_buffer)
        self.device = float_workspace_buffer.device
        cuda = self.device.type == "cuda"
        self._kv_layout, self._use_cuda_graph, self._backend = kv_layout, use_cuda_graph, backend
        self._float_workspace_buffer = float_workspace_buffer
        self._workspace_size = float_workspace_buffer.numel() * float_workspace_buffer.element_size()
        self._int_workspace_buffer = torch.empty(INT_WORKSPACE, dtype=torch.uint8, device=self.device)
        self._pin_memory_int_workspace_buffer = torch.empty(INT_WORKSPACE, dtype=torch.uint8, pin_memory=cuda)
        self._kv_lens_buffer = torch.empty(32768, dtype=torch.int32, device=self.device)
        self._memory, self._upload = Memory(self.device), Upload(self.device)
        self._variant_has_sinks = sink_arguments(jit_args)
        self._jit_module = None if jit_args is None else CachedModule(self)
        self._cached_module = self._plan_info = None
        self._fixed_batch_size, self._max_total_num_rows, self._qo_indptr_last = 0, None, None
        self._cached_q_data_type = self._cached_kv_data_type = self._cached_o_data_type = None
        self._causal, self._window_left, self._logits_soft_cap, self._sm_scale = False, -1, 0.0, None
        self._pos_encoding_mode, self._rope_scale, self._rope_theta = "NONE", None, None
        self._batch_invariant, self._sinks, self._block_tables = False, None, None
        self._custom_mask_buf = self._mask_indptr_buf = None
        self._id = give_name(self)
        self._plans_ahead = True  # False: plan() leaves the kernels alone until a run asks for them
        self._heads = None  # (num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo) of the plan

    @property
    def is_cuda_graph_enabled(self):
        return self._use_cuda_graph

    @property
    def resolved_backend(self):
        return "fa2" if self._backend == "auto" else self._backend

    def reset_workspace_buffer(self, float_workspace_buffer, int_workspace_buffer):
        """Takes other workspaces. Fulmen's memory is the wrapper's own, so a plan made before stays good."""
        if self._aligned_workspaces:
            check_aligned("float_workspace_buffer", float_workspace_buffer)
            check_aligned("int_workspace_buffer", int_workspace_buffer)
        self._float_workspace_buffer, self._int_workspace_buffer = float_workspace_buffer, int_workspace_buffer
        self._workspace_size = float_workspace_buffer.numel() * float_workspace_buffer.element_size()

    def workspace_size(self, *args, **kwargs):
        """(float bytes, int bytes) that a plan with these arguments needs of the caller: an address each."""
        return 256, 256

    def prewarm_paged_kv_stride_variant(self, variant="independent"):
        """K and V may have any strides: nothing to prepare."""

    def end_forward(self):
        """Kept for older clients; does nothing."""

    def _set_options(self, *, causal, pos_encoding_mode, window_left, logits_soft_cap, sm_scale, rope_scale, rope_theta):
        check_pos_encoding_mode(pos_encoding_mode)
        self._set(_causal=causal, _pos_encoding_mode=pos_encoding_mode, _window_left=window_left,
                  _logits_soft_cap=0.0 if logits_soft_cap is None else logits_soft_cap, _sm_scale=sm_scale, _rope_scale=rope_scale,
                  _rope_theta=rope_theta)

    def _set_dtypes(self, q_data_type, kv_data_type, o_data_type):
        q = to_dtype(q_data_type)
        kv, o = (q if x is None else to_dtype(x) for x in (kv_data_type, o_data_type))
        self._set(_cached_q_data_type=q, _cached_kv_data_type=kv, _cached_o_data_type=o)
        # A 16-bit mismatch is told by run, which sees the tensors.
        check_dtypes(kv if kv in (torch.float16, torch.bfloat16) else q, kv, o)

    def _indices(self, **sources):
        """The device tensors of index arguments, by the names of their attributes: in graph mode the heads of the
        buffers, filled."""
        if self._use_cuda_graph:
            buffers = [getattr(self, name) for name in sources]
            for (name, source), buffer in zip(sources.items(), buffers):
                if source.numel() > buffer.numel():
                    raise ValueError(f"The length of {name.strip('_')} input ({source.numel()}) exceeds that of the buffer "
                                     f"({buffer.numel()}) allocated for CUDA graph mode")
            return fill(buffers, sources.values())
        placed, state = self._upload(*sources.values()), self.__dict__
        for name, tensor in zip(sources, placed):
            if state.get(name) is not tensor:
                state.update(zip(sources, placed), _ready=None)
                break
        return placed

    def _check_batch_size(self, batch_size):
        if self._use_cuda_graph and batch_size != self._fixed_batch_size:
            raise ValueError(f"The batch size should be fixed in cudagraph mode, the runtime batch size {batch_size} "
                             f"mismatches the batch size set during initialization {self._fixed_batch_size}")

    def _set_batch(self, qo_indptr, lengths, bounds, page_size, heads, again=False):
        """The plan itself, for what the attributes ask now. again: they ask what they did."""
        previous = self._plan_info if isinstance(self._plan_info, Batch) else None
        if again and previous is not None and previous.take(qo_indptr, lengths, bounds, page_size):
            return previous
        self._memory.keep_all = self._use_cuda_graph
        batch = Batch(self._memory, qo_indptr, lengths, bounds, page_size, like=previous)
        module = self._jit_module or self._cached_module or CachedModule(self)
        self.__dict__.update(_plan_info=batch, _heads=heads, _cached_module=module, _ready=None, _asked=None)
        return batch

    def _prepare(self, asked=None, again=False):
        """Compiles and plans ahead of run; what run finds different it plans then. asked: what the next plan may ask again."""
        q, kv = self._cached_q_data_type, self._cached_kv_data_type
        if self._plans_ahead and q == kv and self._plan_info.num_requests > 0 and not self._variant_has_sinks:
            hq, hk, d_qk, d_vo = self._heads
            kind = self._kind if again else self._options(d_qk).kind(q, self._cached_o_data_type, d_qk, d_vo, hq, hk)
            handle, ready = self._plan_info.handle(kind), self._ready
            if ready is not None and ready[0].owner is not handle:  # planned for the last step only
                ready = None
            self.__dict__.update(_asked=asked, _kind=kind, _ready=ready)

    def _mask(self):
        return None if self._custom_mask_buf is None else (self._custom_mask_buf, self._mask_indptr_buf)

    def _options(self, head_dim, *factors, sinks=None):
        return Options(causal=self._causal, window_left=self._window_left, logits_soft_cap=self._logits_soft_cap,
                       sm_scale=scaled(self._sm_scale, head_dim, *factors), pos_encoding_mode=self._pos_encoding_mode,
                       rope_scale=self._rope_scale, rope_theta=self._rope_theta, batch_invariant=self._batch_invariant,
                       mask=self._mask(), sinks=self._sinks if sinks is None else sinks)

    def _check_run(self, q, k, window_left=None, kv_cache_sf=None):
        if self._plan_info is None:
            raise RuntimeError("plan() must be called before run()")
        if kv_cache_sf is not None:
            refuse("NVFP4 KV caches")
        for name, tensor, planned in (("q", q, self._cached_q_data_type), ("k", k, self._cached_kv_data_type)):
            if planned is not None and tensor.dtype != planned:
                raise ValueError(f"The dtype of {name} {tensor.dtype} does not match the {'kv' if name == 'k' else 'q'}_data_type "
                                 f"{planned} specified in plan function.")
        assert window_left is None or window_left == self._window_left, (
            f"window_left: expected the planned {self._window_left}, found {window_left}")

    def _run(self, q, k, v, table, args, *, q_scale=None, k_scale=None, v_scale=None, out=None, lse=None, return_lse=False,
             sinks=None, lse_base="log2", lse_layout="NH", given=None):
        """given: what `_again` compares; without it, or with lse otherwise than usual, nothing is kept for it."""
        if compiling():
            return self._traced_run(q, k, v, table, args, q_scale, k_scale, v_scale, out, lse, return_lse, sinks, lse_base,
                                    lse_layout)
        if self._variant_has_sinks:  # the variant's own arguments: its tensor, then its scalar
            sinks, sm_scale = args
            options = self._options(q.shape[-1], sinks=sinks)
            options.sm_scale = float(sm_scale)
        elif args:
            refuse("fp8 attention")
        else:
            options = self._options(q.shape[-1], q_scale, k_scale, sinks=sinks)
        if lse_base not in ("log2", "ln") or lse_layout not in ("NH", "HN"):
            raise ValueError("lse_base and lse_layout: expected 'log2' or 'ln' and 'NH' or 'HN', found "
                             f"{lse_base!r} and {lse_layout!r}")
        if lse_layout == "HN":
            transposed = (q.shape[1], q.shape[0])
            if lse is not None:
                check_output("lse", lse, transposed, torch.float32, q.device)
            elif return_lse:
                lse = torch.empty(transposed, dtype=torch.float32, device=q.device)
        elif lse_base == "log2" and given is not None and not args:
            out, lse = outputs(q, k, v, self._cached_o_data_type, out, lse, return_lse)
            call = prepare(self._plan_info, options, q, k, v, table, out, v_scale, given, self._kv_layout == "HND")
            if call is not None and call.run(given, q, k, v, out, lse, options.sinks, stream_of(q.device)):
                self.__dict__["_ready"] = call, out.shape[-1], out.dtype
                return (out, lse) if return_lse else out
        result = attend(self._plan_info, options, q, k, v, table, out_dtype=self._cached_o_data_type, out=out,
                        lse=lse.t() if lse is not None and lse_layout == "HN" else lse, return_lse=return_lse, v_scale=v_scale,
                        lse_base2=lse_base == "log2")
        return (result[0], lse) if return_lse and lse is not None else result

    def _again(self, given, q, k, v, out, lse, return_lse, sinks):
        """The last run on other tensors: its result, or None where it can't be that. k: also a paged cache, without v."""
        call, head_dim, dtype = self._ready
        if out is None:
            plain = dtype is q.dtype and head_dim == q.shape[-1] and q.is_contiguous()
            out = torch.empty_like(q) if plain else q.new_empty((*q.shape[:-1], head_dim), dtype=dtype)
        if lse is None and return_lse:
            lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
        if not call.run(given, q, k, v, out, lse, self._sinks if sinks is None else sinks, stream_of(self.device)):
            return None
        return (out, lse) if return_lse else out

    def _traced_run(self, q, k, v, table, args, q_scale, k_scale, v_scale, out, lse, return_lse, sinks, lse_base, lse_layout):
        """_run while torch.compile traces: the call becomes one op, which finds this wrapper again."""
        from . import _traced
        if args or lse_base != "log2" or lse_layout != "NH":
            refuse("a variant's own arguments, lse_base or lse_layout inside torch.compile")
        out = q.new_empty((*q.shape[:2], v.shape[-1]), dtype=self._cached_o_data_type) if out is None else out
        lse = q.new_empty(q.shape[:2], dtype=torch.float32) if lse is None and return_lse else lse
        _traced.wrapper_run(self, q, k, v, table, out, lse, q_scale, k_scale, v_scale, sinks)
        return (out, lse) if return_lse else out


class CachedModule:
    """Stands for upstream's compiled module: engines call its plan() themselves and keep what it returns."""

    def __init__(self, wrapper):
        self._wrapper = weakref.ref(wrapper)

    def plan(self, *args):
        wrapper = self._wrapper()
        if wrapper is None:
            raise RuntimeError("plan: the wrapper of this module is gone")
        return wrapper._plan_from_module(*args)
