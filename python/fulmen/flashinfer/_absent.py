"""FlashInfer's names that are not offered: they exist where clients import them from and raise at the call.

A name stands for the feature of its line. Capitalised names are classes whose constructor raises. A submodule with a
file of its own ends in `__getattr__ = _absent.lookup("its name")`."""
import importlib.machinery
import sys
import types

from ._api import refuse

# submodule: {feature: names}
NAMES = {
    "decode": {
        "MLA decode": """BatchDecodeMlaWithPagedKVCacheWrapper trtllm_batch_decode_with_kv_cache_mla
            xqa_batch_decode_with_kv_cache_mla""",
        "cuDNN attention": "cudnn_batch_decode_with_kv_cache",
        "variants written in CUDA C++": "single_decode_with_kv_cache_with_jit_module"},
    "prefill": {
        "variants written in CUDA C++": "single_prefill_with_kv_cache_with_jit_module",
        "FMHA-v2 prefill": "trtllm_fmha_v2_prefill",
        "trtllm ragged attention": "trtllm_ragged_attention_deepseek",
        "SageAttention": "trtllm_sage_attention_quantize",
        "causal-bidirectional ranges": "BatchPrefillWithCausalBidirectionalRangesWrapper"},
    "cudnn": {"cuDNN attention": "cudnn_batch_decode_with_kv_cache cudnn_batch_prefill_with_kv_cache"},
    "mla": {"MLA attention": """BatchMLAPagedAttentionWrapper MLAPlanMetadata trtllm_batch_decode_with_kv_cache_mla
        xqa_batch_decode_with_kv_cache_mla"""},
    "xqa": {"MLA decode": "xqa_mla"},
    "page": {"NVFP4 KV caches": """nvfp4_quantize_append_paged_kv_cache
        nvfp4_quantize_append_paged_kv_cache_with_slot_mapping"""},
    "norm": {
        "fused RMSNorm and SiLU": "fused_rmsnorm_silu", "fused QK norm and RoPE": "fused_qk_rmsnorm_rope",
        "DiT norms": """fused_dit_residual_layernorm_scale_shift fused_dit_gate_residual_layernorm_scale_shift
        fused_dit_gate_residual_layernorm_gamma_beta""",
        "fp4 quantisation": "rmsnorm_fp4quant add_rmsnorm_fp4quant"},
    "activation": {"fp4 quantisation": "silu_and_mul_scaled_nvfp4_experts_quantize"},
    "topk": {"top-k transforms": "top_k_page_table_transform top_k_ragged_transform top_k_varlen"},
    "concat_ops": {"MLA concatenation": "concat_mla_k concat_mla_absorb_q"},
    "gemm": {
        "GEMM": """SegmentGEMMWrapper mm_bf16 bmm_bf16 tinygemm_bf16 tgv_gemm_sm100 grouped_mm_bf16""",
        "fp8 GEMM": """mm_fp8 bmm_fp8 mm_mxfp8 bmm_mxfp8 gemm_fp8_nt_groupwise gemm_fp8_nt_blockscaled
        group_gemm_fp8_nt_groupwise group_gemm_mxfp8_mxfp4_nt_groupwise group_deepgemm_fp8_nt_groupwise
        batch_deepgemm_fp8_nt_groupwise fp8_blockscale_gemm_sm90""",
        "fp4 GEMM": "mm_fp4 mm_bf16_fp4 mm_nvfp4_svdquant prepare_bf16_fp4_weights nvfp4_quantize_smooth svdquant_linear"},
    "grouped_mm": {"grouped GEMM": "grouped_mm_bf16 grouped_mm_fp8 grouped_mm_mxfp8 grouped_mm_fp4"},
    "deep_gemm": {"fp8 GEMM": "m_grouped_fp8_gemm_nt_contiguous m_grouped_fp8_gemm_nt_masked"},
    "trtllm_low_latency_gemm": {"GEMM": "prepare_low_latency_gemm_weights"},
    "fp4_quantization": {"fp4 quantisation": """block_scale_interleave nvfp4_block_scale_interleave
        e2m1_and_ufp8sf_scale_to_float fp4_quantize mxfp4_dequantize_host mxfp4_dequantize mxfp4_quantize nvfp4_quantize
        nvfp4_quantize_paged_kv_cache nvfp4_batched_quantize shuffle_matrix_a shuffle_matrix_sf_a
        scaled_fp4_grouped_quantize silu_and_mul_nvfp4_quantize nvfp4_kv_dequantize nvfp4_kv_dequantize_paged
        nvfp4_kv_quantize"""},
    "quantization.nvfp4_quantization_utils": {"fp4 quantisation": "NVFP44Over6Config NVFP44Over6ErrMode nvfp4_e4m3_max"},
    "fp8_quantization": {"mxfp8 quantisation": "mxfp8_dequantize_host mxfp8_grouped_quantize mxfp8_quantize"},
    "fused_moe": {"mixture of experts": """cutlass_fused_moe reorder_rows_for_gated_act_gemm trtllm_bf16_moe
        trtllm_bf16_routed_moe trtllm_fp4_block_scale_moe trtllm_fp4_block_scale_routed_moe trtllm_fp8_block_scale_moe
        trtllm_fp8_block_scale_routed_moe trtllm_fp8_per_tensor_scale_moe trtllm_fp8_per_tensor_scale_routed_moe
        cute_dsl_fused_moe_nvfp4 mono_moe bgmv_moe hash_topk fused_topk_deepseek trtllm_gen_routing MoELayer"""},
    "comm": {"communication": """allreduce_fusion trtllm_allreduce_fusion trtllm_moe_allreduce_fusion
        trtllm_custom_all_reduce trtllm_create_ipc_workspace_for_all_reduce_fusion
        trtllm_destroy_ipc_workspace_for_all_reduce_fusion vllm_all_reduce vllm_init_custom_ar vllm_dispose
        vllm_register_buffer moe_a2a_dispatch moe_a2a_combine MoeAlltoAll ulysses_a2a decode_cp_a2a_init decode_cp_a2a_alltoall
        run_mixed_comm"""},
    "moe_ep": {"mixture of experts": ""},
    "mhc": {"mHC": ""},
    "msa_ops": {"MSA": ""},
    "mamba": {"Mamba": "selective_state_update"},
    "gdn_prefill": {"gated delta rule": "chunk_gated_delta_rule"},
    "gdn_decode": {"gated delta rule": "gated_delta_rule_decode"},
    "kda": {"KDA": "RecurrentKDAPrefillWrapper recurrent_kda"},
    "autotuner": {"autotuning": "autotune"},
}


def _function(name, feature):
    def call(*args, **kwargs):
        refuse(f"{name} ({feature})")
    call.__name__ = call.__qualname__ = name
    return call


def _class(name, feature):
    def refused(self, *args, **kwargs):
        refuse(f"{name} ({feature})")
    return type(name, (), {"__init__": refused, "plan": refused, "run": refused, "__doc__": f"Not offered: {feature}."})


_made = {}


def _make(module, name):
    for feature, names in NAMES.get(module, {}).items():
        if name in names.split():
            key = name, feature
            if key not in _made:
                _made[key] = (_class if name[0].isupper() else _function)(name, feature)
            return _made[key]
    return None


TOP_LEVEL = {name: module for module, features in NAMES.items() if "." not in module
             for names in features.values() for name in names.split()}


def top_level(name):
    """The stand-in of a name at top level, a module all of whose names are absent, or None."""
    if name in _MODULES:
        return _MODULES[name]
    return _make(TOP_LEVEL[name], name) if name in TOP_LEVEL else None


def lookup(module):
    """A submodule's __getattr__: its absent names."""
    def __getattr__(name):
        value = _make(module, name)
        if value is None:
            raise AttributeError(f"module 'flashinfer.{module}' has no attribute {name!r}")
        return value
    return __getattr__


def _module(name):
    module = types.ModuleType(f"{__package__}.{name}", "Not offered: every name raises at the call.")
    module.__getattr__ = lookup(name)
    module.__package__, module.__path__ = module.__name__, []
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, origin="fulmen", is_package=True)
    sys.modules[module.__name__] = module
    return module


_HAVE_FILES = {"decode", "prefill", "xqa", "page", "norm", "activation", "topk"}
_MODULES = {name: _module(name) for name in NAMES if name not in _HAVE_FILES}
