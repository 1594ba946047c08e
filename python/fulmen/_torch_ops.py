"""Fulmen's calls as torch custom ops, so that torch.compile keeps them in its graph. Imported when a call is first traced.

Each op writes into tensors that its caller made, so its fake implementation has nothing to do. An op's arguments are those
of the function of the binding of the same name, in a form that schemas have: a table is its three tensors, rope's
parameters are a list of numbers, "a number or a tensor" is one of each."""
import torch

from . import _binding
from ._arrays import context_of, named, stream_of

_TABLE = "Tensor? {0}table, Tensor? {0}indptr, Tensor? {0}row_index"
_FILTER = ("float temperature, Tensor? temperatures, int top_k, Tensor? top_ks, float top_p, Tensor? top_ps, float min_p, "
           "Tensor? min_ps, bool joint")
_SCHEMAS = {
    "append_kv": "Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor? slot_mapping, Tensor? qo_indptr, "
                 f"Tensor? kv_len, Tensor? last_page_len, {_TABLE.format('')}",
    "merge_states": "Tensor part_o, Tensor part_lse, Tensor(a!) o, Tensor(b!) lse, bool lse_base2",
    "merge_state": "Tensor o_a, Tensor lse_a, Tensor o_b, Tensor lse_b, Tensor(a!) o, Tensor(b!) lse, bool lse_base2",
    "rope": "Tensor(a!) q, Tensor(b!)? k, Tensor(c!)? q_out, Tensor(d!)? k_out, Tensor positions, Tensor? cos_sin_cache, "
            "float[] params",
    "rope_append": "Tensor(a!) q, Tensor k, Tensor v, Tensor(b!) k_cache, Tensor(c!) v_cache, Tensor(d!)? q_out, "
                   "Tensor positions, Tensor? cos_sin_cache, Tensor? slot_mapping, Tensor? qo_indptr, Tensor? kv_len, "
                   f"Tensor? last_page_len, {_TABLE.format('')}, float[] params",
    "rms_norm": "Tensor x, Tensor weight, Tensor(a!)? residual, Tensor(b!) out, float eps, float weight_offset",
    "layer_norm": "Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out, float eps",
    "act_and_mul": "Tensor x, Tensor(a!) out, int activation",
    "softmax": "Tensor logits, Tensor(a!) probs, float temperature, Tensor? temperatures",
    "argmax": "Tensor x, Tensor(a!) index",
    "sample": f"Tensor input, bool is_probs, Tensor(a!) tokens, Tensor(b!)? logprob, {_FILTER}, SymInt seed, Tensor? seeds, "
              "SymInt offset, Tensor? offsets, Tensor? row_ids",
    "filter": f"Tensor input, bool is_probs, bool to_logits, Tensor(a!) output, {_FILTER}",
    "top_k": "Tensor x, Tensor(a!) values, Tensor(b!) indices",
    "attention_plan": "SymInt attention, Tensor?[] levels, int page_size, Tensor(a!) plan_mem",
    "attention_run": "SymInt attention, Tensor q, Tensor k, Tensor v, Tensor(a!) o, Tensor?[] tables, Tensor plan_mem, "
                     "Tensor(b!) scratch, Tensor(c!)? lse, Tensor?[] v_tables, int group, int page_size, float sm_scale, "
                     "float logits_soft_cap, Tensor? alibi_slopes, Tensor? sinks, Tensor? mask, Tensor? mask_indptr, "
                     "float[] rope, int[] variant_params, float o_scale, bool lse_base2",
}
_UNIONS = {"temperature", "top_k", "top_p", "min_p", "seed", "offset"}  # of one number or a tensor with the name's plural
_ROPE = ("rotary_dim", "interleaved", "scaling", "theta", "factor", "low_freq_factor", "high_freq_factor", "beta_fast",
         "beta_slow", "attention_factor", "original_context")
_SCALINGS = ("none", "linear", "llama31", "yarn")
_LEVEL = ("qo_indptr", "kv_len", "kv_page_indptr", "last_page_len")
_WHOLE = {"rotary_dim", "interleaved", "original_context"}


# ------------------------------------------------------------------------------------------ traced: arguments to a schema's
def table_args(table):
    if isinstance(table, dict):
        return [table.get("table"), table.get("indptr"), table.get("row_index")]
    return [table, None, None]


def rope_args(params):
    if params is None:
        return []
    return [float(_SCALINGS.index(params.get(n, "none")) if n == "scaling" else params.get(n, 0)) for n in _ROPE]


def call(name, args):
    """The op of a function of the binding, called with that function's arguments."""
    names = _ARGUMENTS[name]
    given = []
    for argument, value in zip(names, args):
        if argument == "table":
            given += table_args(value)
        elif argument == "params":
            given.append(rope_args(value))
        elif argument in _UNIONS:
            given += [0, value] if isinstance(value, torch.Tensor) else [value, None]
        elif argument == "eps" or argument == "weight_offset":
            given.append(float(value))
        else:
            given.append(value)
    getattr(torch.ops.fulmen, name)(*given)


def attention_plan(attention, levels, page_size):
    torch.ops.fulmen.attention_plan(attention._id, [level.get(key) for level in levels for key in _LEVEL], page_size,
                                    attention.plan_mem)


def attention_run(attention):
    """-> what takes the arguments of the handle's run; the stream is torch's current one"""
    name = attention._id

    def run(q, k, v, o, tables, plan_mem, scratch, lse, v_tables, group, page_size, sm_scale, logits_soft_cap,
            alibi_slopes, sinks, mask, mask_indptr, rope, variant_params, o_scale, lse_base2, stream):
        flat, flat_v = [x for t in tables for x in table_args(t)], [x for t in v_tables or () for x in table_args(t)]
        torch.ops.fulmen.attention_run(name, q, k, v, o, flat, plan_mem, scratch, lse, flat_v, group, page_size,
                                       float(sm_scale), float(logits_soft_cap), alibi_slopes, sinks, mask, mask_indptr,
                                       rope_args(rope), list(variant_params or b""), float(o_scale), lse_base2)
    return run


# ------------------------------------------------------------------------------------------ run: back to the binding's
def table_of(tensors):
    table, indptr, row_index = tensors
    if indptr is None and row_index is None:
        return table
    return {"table": table, "indptr": indptr, "row_index": row_index}


def _tables(tensors):
    return [table_of(tensors[i:i + 3]) for i in range(0, len(tensors), 3)]


def _rope(numbers):
    if not numbers:
        return None
    params = {n: int(x) if n in _WHOLE else x for n, x in zip(_ROPE, numbers)}
    params["scaling"] = _SCALINGS[int(params["scaling"])]
    return params


def _names(schema):
    return [part.split()[-1] for part in schema.split(", ")]


def _binding_arguments(schema):
    """The names of the binding's function: without a union's tensors and a table's parts."""
    names = _names(schema)
    return [n for n in names if not (n.endswith("s") and n[:-1] in _UNIONS) and n not in ("indptr", "row_index")]


def _small_op(name):
    function, wanted, parts = getattr(_binding, name), _ARGUMENTS[name], _names(_SCHEMAS[name])

    def run(*args):
        given = dict(zip(parts, args))
        values = []
        for n in wanted:
            if n == "table":
                values.append(table_of([given["table"], given["indptr"], given["row_index"]]))
            elif n == "params":
                values.append(_rope(given[n]))
            elif n in _UNIONS and given[n + "s"] is not None:
                values.append(given[n + "s"])
            else:
                values.append(given[n])
        function(context_of(args[0]), *values, stream_of(args[0]))
    return run


def _attention_plan(attention, levels, page_size, plan_mem):
    named[attention]._handle.plan([dict(zip(_LEVEL, levels[i:i + 4])) for i in range(0, len(levels), 4)], page_size, plan_mem,
                                    stream_of(plan_mem))


def _attention_run(attention, q, k, v, o, tables, plan_mem, scratch, lse, v_tables, group, page_size, sm_scale,
                   logits_soft_cap, alibi_slopes, sinks, mask, mask_indptr, rope, variant_params, o_scale, lse_base2):
    named[attention]._handle.run(q, k, v, o, _tables(tables), plan_mem, scratch, lse=lse, v_tables=_tables(v_tables) or None,
                                   group=group, page_size=page_size, sm_scale=sm_scale, logits_soft_cap=logits_soft_cap,
                                   alibi_slopes=alibi_slopes, sinks=sinks, mask=mask, mask_indptr=mask_indptr,
                                   rope=_rope(rope), variant_params=bytes(variant_params) or None, o_scale=o_scale,
                                   lse_base2=lse_base2, stream=stream_of(q))


_ARGUMENTS = {name: _binding_arguments(schema) for name, schema in _SCHEMAS.items()}
_library = torch.library.Library("fulmen", "DEF")


def define(name, schema, run):
    """An op fulmen::name, whose implementation runs outside of graphs."""
    _library.define(f"{name}({schema}) -> ()")
    for device in ("CPU", "CUDA"):
        _library.impl(name, run, device)
    torch.library.register_fake(f"fulmen::{name}", lambda *args: None, lib=_library)


_OTHERS = {"attention_plan": _attention_plan, "attention_run": _attention_run}
for _name, _schema in _SCHEMAS.items():
    define(_name, _schema, _OTHERS.get(_name) or _small_op(_name))
