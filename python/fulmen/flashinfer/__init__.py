"""FlashInfer's names and signatures over Fulmen: an engine written for FlashInfer switches by changing an import.

    import fulmen.flashinfer as flashinfer          # or, for code that can't be changed:
    fulmen.flashinfer.install()                     # `import flashinfer` now gives this package
    $ python -m fulmen.flashinfer run -- COMMAND    # the same for a command and all processes that it starts

Everything is loaded when first used. What is not offered exists by name and raises one error at the call that names
the feature. LSE is in base 2, as that API has it. `status()` lists the calls served and refused.
"""
import importlib

from . import _absent
from ._api import status
from ._install import install

__version__ = "0.7.2.post1"  # the release imitated
__git_commit__ = __git_version__ = "unknown"

_SUBMODULES = {
    "activation", "attention", "cascade", "decode", "jit", "logits_processor", "norm", "page", "pod", "prefill",
    "quantization", "rope", "sampling", "sparse", "tllm_enums", "topk", "triton", "utils",
    "xqa"}

_TOP_LEVEL = {
    "decode": """BatchDecodeWithPagedKVCacheWrapper CUDAGraphBatchDecodeWithPagedKVCacheWrapper fast_decode_plan
        single_decode_with_kv_cache""",
    "prefill": """BatchPrefillWithPagedKVCacheWrapper BatchPrefillWithRaggedKVCacheWrapper single_prefill_with_kv_cache
        single_prefill_with_kv_cache_return_lse""",
    "cascade": """MultiLevelCascadeAttentionWrapper BatchDecodeWithSharedPrefixPagedKVCacheWrapper
        BatchPrefillWithSharedPrefixPagedKVCacheWrapper merge_state merge_state_in_place merge_states""",
    "attention": "BatchAttention BatchAttentionWithAttentionSinkWrapper",
    "pod": "PODWithPagedKVCacheWrapper BatchPODWithPagedKVCacheWrapper",
    "sparse": "BlockSparseAttentionWrapper VariableBlockSparseAttentionWrapper",
    "xqa": "xqa",
    "page": "append_paged_kv_cache append_paged_mla_kv_cache get_batch_indices_positions get_seq_lens",
    "rope": """apply_rope apply_rope_inplace apply_rope_pos_ids apply_rope_pos_ids_inplace apply_llama31_rope
        apply_llama31_rope_inplace apply_llama31_rope_pos_ids apply_llama31_rope_pos_ids_inplace
        apply_rope_with_cos_sin_cache apply_rope_with_cos_sin_cache_inplace""",
    "norm": """rmsnorm gemma_rmsnorm fused_add_rmsnorm gemma_fused_add_rmsnorm layernorm rmsnorm_quant
        fused_add_rmsnorm_quant layernorm_quant""",
    "activation": "silu_and_mul gelu_and_mul gelu_tanh_and_mul",
    "sampling": """softmax sampling_from_logits sampling_from_probs top_p_sampling_from_probs top_k_sampling_from_probs
        min_p_sampling_from_probs top_k_top_p_sampling_from_probs top_k_top_p_sampling_from_logits top_p_renorm_probs
        top_k_renorm_probs top_k_mask_logits chain_speculative_sampling""",
    "quantization": "packbits segment_packbits",
    "topk": "top_k TopKTieBreak",
    "tllm_enums": "SfLayout",
    "utils": "next_positive_power_of_2",
}
_WHERE = {name: module for module, names in _TOP_LEVEL.items() for name in names.split()}

__all__ = ["install", "status", *_WHERE]


def __getattr__(name):
    if name in _WHERE:
        value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    elif name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    else:
        value = _absent.top_level(name)
        if value is None:
            raise AttributeError(f"module 'flashinfer' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_WHERE, *_SUBMODULES, *_absent.TOP_LEVEL})
