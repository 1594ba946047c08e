"""Upstream's test files that are run, what each compares with, and which cases are left out and why."""
import re

# file: (ring, what upstream compares with)
FILES = {
    "attention/test_batch_decode_kernels.py": (1, "its own single decode"),
    "attention/test_tensor_cores_decode.py": (1, "its own decode without tensor cores"),
    "attention/test_batch_prefill_kernels.py": (1, "its own single prefill"),
    "attention/test_batch_prefill.py": (1, "its own runs with other scales"),
    "attention/test_single_prefill.py": (1, "plain torch"),
    "attention/test_hopper.py": (1, "its own fa2 back end"),
    "attention/test_batch_invariant_fa2.py": (1, "itself, bit for bit"),
    "attention/test_sliding_window.py": (1, "its own masks and slices"),
    "attention/test_logits_cap.py": (1, "plain torch"),
    "attention/test_alibi.py": (1, "plain torch"),
    "attention/test_non_contiguous_prefill.py": (1, "itself on contiguous tensors"),
    "attention/test_non_contiguous_decode.py": (1, "itself on contiguous tensors"),
    "attention/test_decode_prefill_lse.py": (1, "its own decode"),
    "attention/test_workspace_size.py": (1, "nothing but sizes"),
    "attention/test_shared_prefix_kernels.py": (1, "itself without sharing"),
    "utils/test_triton_cascade.py": (1, "its own merges"),
    "attention/test_page.py": (1, "nothing, or NVFP4 by torch"),
    "attention/test_mla_page.py": (1, "the appended rows"),
    "attention/test_rope.py": (1, "plain torch"),
    "utils/test_norm.py": (1, "plain torch"),
    "utils/test_activation.py": (1, "plain torch"),
    "utils/test_sampling.py": (1, "plain torch, frequencies"),
    "attention/test_batch_attention.py": (2, "its own paged prefill"),
    "attention/test_attention_sink.py": (2, "plain torch"),
    "attention/test_block_sparse.py": (2, "its own prefill with a mask"),
    "utils/test_pod_kernels.py": (2, "its own prefill and decode"),
    "attention/test_xqa_batch_decode.py": (2, "its own decode, plain torch"),
    "attention/test_trtllm_gen_attention_decode_xqa.py": (2, "its own decode"),
    "attention/test_xqa.py": (2, "plain torch"),
    "utils/test_quantization.py": (2, "numpy"),
    "utils/test_logits_processor.py": (2, "its own sampling"),
    "utils/test_topk.py": (2, "plain torch"),
}

LOW_PRECISION = "needs fp8, NVFP4 or another format below 16 bits"
WIDE_HEADS = "head_dim above 256"
INTERNALS = "tests upstream's limits or internals"
NOT_OFFERED = "a feature that is not offered"

_NAMED = {  # a part of a test's name: why it is left out
    "transform": NOT_OFFERED + ": top-k transforms",
    "sglang_style": NOT_OFFERED + ": top-k transforms",
    "topk_clusters_exact": NOT_OFFERED + ": Blackwell's top-k",
    "_mla": NOT_OFFERED + ": MLA attention",
    "norm_compilation_without_fp8": INTERNALS,
    "dirty_cached_row_states": INTERNALS,
    "cached_row_states": INTERNALS,
    "identical_strides": INTERNALS,
    "unequal_kv_strides": INTERNALS,
    "interior_tile": INTERNALS,
    "rejects_mismatched_q_len": INTERNALS,  # the fa3 back end refuses several rows a request
    "compute_sanitizer": INTERNALS,
}
_LOW = re.compile(r"fp8|float8|e4m3|e5m2|fp4|mxfp|quantize|_quant\b|_quant_|uint8|int8")
_WIDE = re.compile(r"(?:head_dim_|qk)(\d+)|large_head")


def excluded(name, params):
    """Why a case is left out, or None."""
    for part, reason in _NAMED.items():
        if part in name and not (part == "_mla" and "append_mla" in name):
            return reason
    if params.get("api_kind", params.get("transform_mode")) in ("page_table", "ragged"):
        return _NAMED["transform"]
    words = [name, *(f"{key}={value}" for key, value in params.items() if value is not False and value is not None)]
    if "test_packbits" not in name and "segment_packbits" not in name and _LOW.search(" ".join(words).lower()):
        return LOW_PRECISION
    for key, value in params.items() if "norm" not in name else ():
        if ("head_dim" in key or key in ("head_size", "d_qk", "d_vo")) and isinstance(value, int) and value > 256:
            return WIDE_HEADS
    for width in _WIDE.findall(name):
        if width == "" or int(width) > 256:  # "": a large head
            return WIDE_HEADS
    return None
