"""Calls of wrappers, single requests and fulmen.flash_attn as torch custom ops, beside fulmen._torch_ops. Imported when one is
first traced."""
import torch

from .._arrays import named
from .._torch_ops import define, table_args, table_of
from ._attention import Options, attend
from ._batch import attend_into
from ._plain import single_batch


# ------------------------------------------------------------------------------------------ traced: arguments to a schema's
def _numbers(*values):
    return [None if x is None else float(x) for x in values]


def wrapper_run(wrapper, q, k, v, table, out, lse, q_scale, k_scale, v_scale, sinks):
    torch.ops.fulmen.wrapper_run(wrapper._id, q, k, v, table_args(table), out, lse, *_numbers(q_scale, k_scale, v_scale), sinks)


def cascade_run(wrapper, q, k, v, out):
    torch.ops.fulmen.cascade_run(wrapper._id, q, k, v, out)


def single_run(options, q, k, v, out, lse, v_scale):
    o, (mask, mask_indptr) = options, options.mask or (None, None)
    torch.ops.fulmen.single_run(q, k, v, out, lse, o.causal, -1 if o.window_left is None else o.window_left,
                                float(o.logits_soft_cap or 0.0), float(o.sm_scale), o.pos_encoding_mode,
                                *_numbers(o.rope_scale, o.rope_theta, v_scale), mask, mask_indptr)


def flash_run(q, k, v, out, lse, table, qo_indptr, kv_len, max_qo_len, max_kv_len, causal, window_left, softmax_scale, softcap,
              alibi_slopes, sinks, mask):
    bits, offsets = mask or (None, None)
    torch.ops.fulmen.flash_run(q, k, v, out, lse, table_args(table), qo_indptr, kv_len, max_qo_len, max_kv_len, causal, window_left,
                               float(softmax_scale or 0.0), float(softcap), alibi_slopes, sinks, bits, offsets)


# ------------------------------------------------------------------------------------------ run
def _wrapper_run(wrapper, q, k, v, table, out, lse, q_scale, k_scale, v_scale, sinks):
    named[wrapper]._run(q, k, v, table_of(table), (), q_scale=q_scale, k_scale=k_scale, v_scale=v_scale, out=out, lse=lse,
                        sinks=sinks)


def _cascade_run(wrapper, q, k, v, out):
    named[wrapper]._run_chain(q, k, v, out)


def _single_run(q, k, v, out, lse, causal, window_left, logits_soft_cap, sm_scale, pos_encoding_mode, rope_scale, rope_theta,
                v_scale, mask, mask_indptr):
    options = Options(causal, window_left, logits_soft_cap, sm_scale, pos_encoding_mode, rope_scale, rope_theta,
                      mask=None if mask is None else (mask, mask_indptr))
    batch, table = single_batch(q.device, q.shape[0], k.shape[0])
    attend(batch, options, q, k, v, table, out=out, lse=lse, v_scale=v_scale)


def _flash_run(q, k, v, out, lse, table, qo_indptr, kv_len, max_qo_len, max_kv_len, causal, window_left, softmax_scale, softcap,
               alibi_slopes, sinks, bits, offsets):
    attend_into(q, k, v, out, lse, table_of(table), qo_indptr, kv_len, max_qo_len, max_kv_len, causal, window_left, softmax_scale,
                softcap, alibi_slopes, sinks, None if bits is None else (bits, offsets))


define("wrapper_run", "SymInt wrapper, Tensor q, Tensor k, Tensor v, Tensor?[] table, Tensor(a!) out, Tensor(b!)? lse, "
       "float? q_scale, float? k_scale, float? v_scale, Tensor? sinks", _wrapper_run)
define("cascade_run", "SymInt wrapper, Tensor q, Tensor k, Tensor v, Tensor(a!) out", _cascade_run)
define("single_run", "Tensor q, Tensor k, Tensor v, Tensor(a!) out, Tensor(b!) lse, bool causal, SymInt window_left, "
       "float logits_soft_cap, float sm_scale, str pos_encoding_mode, float? rope_scale, float? rope_theta, float? v_scale, "
       "Tensor? mask, Tensor? mask_indptr", _single_run)
define("flash_run", "Tensor q, Tensor k, Tensor v, Tensor(a!) out, Tensor(b!)? lse, Tensor?[] table, Tensor qo_indptr, Tensor kv_len, "
       "SymInt max_qo_len, SymInt max_kv_len, bool causal, SymInt window_left, float softmax_scale, float softcap, "
       "Tensor? alibi_slopes, Tensor? sinks, Tensor? bits, Tensor? offsets", _flash_run)
