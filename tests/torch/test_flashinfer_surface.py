"""Names and signatures of fulmen.flashinfer beside FlashInfer's (flashinfer_surface.txt); private names that clients touch."""
import importlib
import inspect
import pathlib
import warnings

import pytest
import torch

import fulmen.flashinfer as fi

GROUPS = {
    "WS": 'float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False', "HEADS": "num_qo_heads, num_kv_heads, head_dim",
    "POS": 'pos_encoding_mode="NONE"', "F16": "use_fp16_qk_reduction=False", "WIN": "window_left=-1, logits_soft_cap?",
    "ROPE": "rope_scale?, rope_theta?", "DT": 'q_data_type="float16", kv_data_type?',
    "SPLIT": "fixed_split_size?, disable_split_kv=False",
    "MIS": "prefix_len_ptr?, token_pos_in_items_ptr?, token_pos_in_items_len=0, max_item_len_ptr?",
    "MASK": "custom_mask?, packed_custom_mask?, causal=False", "SC": "q_scale?, k_scale?, v_scale?",
    "OUT": "out?, lse?, return_lse=False", "PDL": "enable_pdl?", "LB": 'lse_base="log2", lse_layout="NH"',
    "I": "rotary_dim?, interleave=False",
    "L": "I, rope_scale=8, rope_theta=5e5, low_freq_factor=1, high_freq_factor=4, old_context_len=8192",
    "S": "deterministic=True, generator?, check_nan=False, seed?, offset?",
    "BUF6": "qo_indptr_buf?, paged_kv_indptr_buf?, paged_kv_indices_buf?, paged_kv_last_page_len_buf?, custom_mask_buf?, "
            "mask_indptr_buf?"}
MORE = {"forward": ["return_lse"]}  # ours besides, at the end


def expand(text):
    for part in (p.strip() for p in text.split(",")):
        if part in GROUPS:
            yield from expand(GROUPS[part])
        elif part:
            yield part


def wanted(text):
    """[(name, kind, default)] of a signature as the file spells it."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    for part in expand(text):
        if part == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
        elif part.startswith("**"):
            yield part[2:], inspect.Parameter.VAR_KEYWORD, None
        elif part.startswith("*"):
            yield part[1:], inspect.Parameter.VAR_POSITIONAL, None
            kind = inspect.Parameter.KEYWORD_ONLY
        elif part.endswith("?"):
            yield part[:-1], kind, None
        elif "=" in part:
            name, default = part.split("=", 1)
            yield name, kind, torch.bfloat16 if default == "bfloat16" else eval(default)
        else:
            yield part, kind, inspect.Parameter.empty


def lines():
    text = (pathlib.Path(__file__).parent / "flashinfer_surface.txt").read_text()
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\n    ", " ")
    return text.strip().splitlines()


@pytest.mark.parametrize("line", lines(), ids=lambda line: line.split("(")[0])
def test_signature(line):
    path, _, text = line.rstrip(")").partition("(")
    parts = path.split(".")
    depth = 2 if parts[0] == "triton" else 1
    thing, is_method = importlib.import_module("fulmen.flashinfer." + ".".join(parts[:depth])), False
    for name in parts[depth:]:
        is_method = inspect.isclass(thing)
        thing = getattr(thing, name)
    have = list(inspect.signature(thing).parameters.values())[is_method:]
    have = [(p.name, p.kind, None if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) else p.default) for p in have]
    if is_method and parts[-1] in MORE:
        have = [p for p in have if p[0] not in MORE[parts[-1]]]
    have = [(n, k, torch.bfloat16 if d == "bfloat16" else d) for n, k, d in have]
    assert have == list(wanted(text))


NOT_AT_TOP_LEVEL = {"top_p_renorm_prob", "top_k_renorm_prob", "trtllm_batch_decode_with_kv_cache", "xqa_batch_decode_with_kv_cache",
                    "trtllm_batch_context_with_kv_cache", "rope_quantize_fp8", "mla_rope_quantize_fp8", "LogitsPipe", "FusionRule",
                    "rope_quantize_fp8_append_paged_kv_cache"}


def test_names_at_top_level_are_those_of_their_submodules():
    for line in lines():
        parts = line.split("(")[0].split(".")
        if parts[0] != "triton" and parts[1] not in NOT_AT_TOP_LEVEL:
            thing = getattr(importlib.import_module(f"fulmen.flashinfer.{parts[0]}"), parts[1])
            assert getattr(fi, parts[1]) is thing or parts[1] == "xqa", parts[1]


def test_xqa_is_called_by_the_name_of_its_module():
    module = importlib.import_module("fulmen.flashinfer.xqa")
    for callable_of_that_name in (fi.xqa, module):  # the function or the module, by what was imported before
        with pytest.raises(TypeError, match="xqa.*missing"):
            callable_of_that_name()
    assert module.xqa.__name__ == "xqa"


def i32(*values):
    return torch.tensor(values, dtype=torch.int32)


STATE = """_float_workspace_buffer _int_workspace_buffer _pin_memory_int_workspace_buffer _backend _plan_info _cached_module
    _jit_module _use_cuda_graph _fixed_batch_size _max_total_num_rows _kv_layout _kv_lens_buffer _workspace_size device
    _cached_q_data_type _cached_kv_data_type _cached_o_data_type _causal _pos_encoding_mode _window_left _logits_soft_cap _sm_scale
    _rope_scale _rope_theta _block_tables _qo_indptr_last _qo_indptr_buf""".split()
PAGED = ["_paged_kv_indptr_buf", "_paged_kv_indices_buf", "_paged_kv_last_page_len_buf"]


def planned():
    """A decode, a paged and a ragged wrapper, planned for two requests."""
    space = torch.empty(1 << 20, dtype=torch.uint8)
    decode, paged = fi.BatchDecodeWithPagedKVCacheWrapper(space), fi.BatchPrefillWithPagedKVCacheWrapper(space)
    ragged = fi.BatchPrefillWithRaggedKVCacheWrapper(space)
    decode.plan(i32(0, 2, 3), i32(0, 1, 2), i32(3, 4), 8, 2, 64, 4)
    paged.plan(i32(0, 2, 5), i32(0, 2, 3), i32(0, 1, 2), i32(3, 4), 8, 2, 64, 4)
    ragged.plan(i32(0, 2, 5), i32(0, 2, 5), 8, 2, 64)
    return decode, paged, ragged


def test_private_state_is_there():
    decode, paged, ragged = planned()
    mask = ["_custom_mask_buf", "_mask_indptr_buf", "_sinks"]
    for wrapper, more in ((decode, [*PAGED, "_q_len_per_req", "_use_tensor_cores"]), (paged, [*PAGED, *mask]),
                          (ragged, ["_kv_indptr_buf", *mask])):
        assert not [name for name in STATE + more if not hasattr(wrapper, name)]
        assert wrapper._plan_info is not None and wrapper._kv_lens_buffer.numel() == 32768
        assert wrapper._int_workspace_buffer.numel() == wrapper._pin_memory_int_workspace_buffer.numel() == 8 << 20


@pytest.mark.parametrize("name, value", [("_window_left", 1), ("_sm_scale", 0.5), ("_logits_soft_cap", 1.0),
                                         ("_pos_encoding_mode", "ALIBI"), ("_paged_kv_indices_buf", i32(2, 1, 0))])
def test_a_private_attribute_is_honoured_by_the_next_run(name, value):
    decode, _, _ = planned()
    q, kv = torch.randn(2, 8, 64).half(), torch.randn(3, 2, 4, 2, 64).half()
    first, before = decode.run(q, kv), getattr(decode, name)
    setattr(decode, name, value)
    assert not torch.equal(first, decode.run(q, kv))
    setattr(decode, name, before)
    assert torch.equal(first, decode.run(q, kv))


def test_modules_that_engines_plan_themselves():
    decode, paged, _ = planned()
    q, rows, kv = torch.randn(2, 8, 64).half(), torch.randn(5, 8, 64).half(), torch.randn(3, 2, 4, 2, 64).half()
    none = torch.empty(0, dtype=torch.float16)
    want = decode.run(q, kv), paged.run(rows, kv)
    spaces = [(w._float_workspace_buffer, w._int_workspace_buffer, w._pin_memory_int_workspace_buffer) for w in (decode, paged)]
    decode._plan_info = decode._cached_module.plan(*spaces[0], i32(0, 2, 3), 2, 8, 2, 4, False, -1, 0.0, 64, 64, none, none)
    paged._plan_info = paged._cached_module.plan(*spaces[1], i32(0, 2, 5), i32(0, 2, 3), i32(7, 4), 5, 2, 8, 2, 4, False, 64, 64,
                                                 False, -1, -1, False)
    assert torch.equal(want[0], decode.run(q, kv)) and torch.equal(want[1], paged.run(rows, kv))


def test_options_by_position_warn_and_end_at_sixteen():
    wrapper = planned()[0]
    table = i32(0, 2, 3), i32(0, 1, 2), i32(3, 4), 8, 2, 64, 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DeprecationWarning):
            wrapper.plan(*table, "NONE")
    with pytest.raises(TypeError, match="16"):
        wrapper.plan(*table, *range(17))


def test_the_library_s_own_refusals_are_counted():
    wrapper = planned()[0]
    before = sum(fi.status()["refused"].values())
    with pytest.raises(NotImplementedError, match="head_dim"):
        wrapper.plan(i32(0, 2, 3), i32(0, 1, 2), i32(3, 4), 8, 2, 512, 4)
    assert sum(fi.status()["refused"].values()) == before + 1
