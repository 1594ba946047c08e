# The C declarations: DLPack's structs, and fulmen.h as the binding uses it.

cdef extern from "_dlpack.h":
    ctypedef struct DLDevice:
        int32_t device_type
        int32_t device_id
    ctypedef struct DLDataType:
        uint8_t code
        uint8_t bits
        uint16_t lanes
    ctypedef struct DLTensor:
        void* data
        DLDevice device
        int32_t ndim
        DLDataType dtype
        int64_t* shape
        int64_t* strides
        uint64_t byte_offset
    ctypedef struct DLManagedTensor:
        DLTensor dl_tensor
    ctypedef struct DLPackExchangeAPIHeader:
        uint32_t major
        uint32_t minor
    ctypedef struct DLPackExchangeAPI:
        DLPackExchangeAPIHeader header
        int (*dltensor_from_py_object_no_sync)(void*, DLTensor*) except -1
        int (*current_work_stream)(int32_t, int32_t, void**) except -1


cdef extern from "fulmen/fulmen.h" nogil:
    ctypedef int fulmen_status
    enum: FULMEN_OK
    enum: FULMEN_MAX_DIMS
    ctypedef void* fulmen_stream
    ctypedef struct fulmen_context:
        pass
    ctypedef struct fulmen_attention:
        pass
    ctypedef struct fulmen_tensor:
        void* data
        int32_t dtype
        int32_t ndim
        int32_t device
        int64_t* shape
        int64_t* stride
    ctypedef struct fulmen_kv_table:
        size_t struct_size
        fulmen_tensor table
        fulmen_tensor indptr
        fulmen_tensor row_index
    ctypedef struct fulmen_context_options:
        size_t struct_size
        int32_t device_type
        int32_t device_index
        int32_t num_threads
        const char* cache_dir
        const char* nvrtc_path
        const char* kernels_dir
    ctypedef struct fulmen_attention_spec:
        size_t struct_size
        int32_t q_dtype
        int32_t kv_dtype
        int32_t o_dtype
        int32_t head_dim_qk
        int32_t head_dim_vo
        uint32_t features
        int32_t batch_invariant
        const char* variant_name
        const char* variant_source
    ctypedef struct fulmen_attention_group:
        size_t struct_size
        int32_t num_qo_heads
        int32_t num_kv_heads
        int32_t causal
        int32_t window_left
    ctypedef struct fulmen_attention_limits:
        size_t struct_size
        int64_t max_requests
        int64_t max_rows
        int64_t max_qo_len
        int64_t max_kv_len
        int32_t num_levels
        int32_t num_groups
        int32_t num_sms
        fulmen_attention_group* groups
    ctypedef struct fulmen_attention_sizes:
        size_t struct_size
        uint64_t plan_bytes
        uint64_t scratch_bytes
    ctypedef struct fulmen_attention_level:
        size_t struct_size
        fulmen_tensor qo_indptr
        fulmen_tensor kv_len
        fulmen_tensor kv_page_indptr
        fulmen_tensor last_page_len
    ctypedef struct fulmen_attention_lengths:
        size_t struct_size
        int32_t num_levels
        int32_t page_size
        fulmen_attention_level* levels
    ctypedef struct fulmen_rope_params:
        size_t struct_size
        int32_t rotary_dim
        int32_t interleaved
        int32_t scaling
        float theta
        float factor
        float low_freq_factor
        float high_freq_factor
        float beta_fast
        float beta_slow
        float attention_factor
        int32_t original_context
    ctypedef struct fulmen_attention_tensors:
        size_t struct_size
        int32_t group
        int32_t page_size
        fulmen_tensor q
        fulmen_tensor k
        fulmen_tensor v
        fulmen_tensor o
        fulmen_tensor lse
        fulmen_kv_table* kv
        fulmen_kv_table* v_table
        float sm_scale
        float logits_soft_cap
        fulmen_tensor alibi_slopes
        fulmen_tensor sinks
        fulmen_tensor mask
        fulmen_tensor mask_indptr
        fulmen_rope_params rope
        const void* variant_params
        size_t variant_params_bytes
        float o_scale
        int32_t lse_base2
    ctypedef struct fulmen_append_kv_args:
        size_t struct_size
        fulmen_tensor k
        fulmen_tensor v
        fulmen_tensor k_cache
        fulmen_tensor v_cache
        fulmen_tensor slot_mapping
        fulmen_tensor qo_indptr
        fulmen_tensor kv_len
        fulmen_tensor last_page_len
        fulmen_kv_table table
    ctypedef struct fulmen_merge_states_args:
        size_t struct_size
        fulmen_tensor part_o
        fulmen_tensor part_lse
        fulmen_tensor o
        fulmen_tensor lse
        int32_t lse_base2
    ctypedef struct fulmen_merge_state_args:
        size_t struct_size
        fulmen_tensor o_a
        fulmen_tensor lse_a
        fulmen_tensor o_b
        fulmen_tensor lse_b
        fulmen_tensor o
        fulmen_tensor lse
        int32_t lse_base2
    ctypedef struct fulmen_rope_args:
        size_t struct_size
        fulmen_tensor q
        fulmen_tensor k
        fulmen_tensor q_out
        fulmen_tensor k_out
        fulmen_tensor positions
        fulmen_tensor cos_sin_cache
        fulmen_rope_params params
    ctypedef struct fulmen_rope_append_args:
        size_t struct_size
        fulmen_tensor q
        fulmen_tensor k
        fulmen_tensor v
        fulmen_tensor q_out
        fulmen_tensor positions
        fulmen_tensor cos_sin_cache
        fulmen_rope_params params
        fulmen_tensor k_cache
        fulmen_tensor v_cache
        fulmen_tensor slot_mapping
        fulmen_tensor qo_indptr
        fulmen_tensor kv_len
        fulmen_tensor last_page_len
        fulmen_kv_table table
    ctypedef struct fulmen_rms_norm_args:
        size_t struct_size
        fulmen_tensor x
        fulmen_tensor weight
        fulmen_tensor residual
        fulmen_tensor out
        float eps
        float weight_offset
    ctypedef struct fulmen_layer_norm_args:
        size_t struct_size
        fulmen_tensor x
        fulmen_tensor weight
        fulmen_tensor bias
        fulmen_tensor out
        float eps
    ctypedef struct fulmen_act_and_mul_args:
        size_t struct_size
        fulmen_tensor x
        fulmen_tensor out
        int32_t activation
    ctypedef struct fulmen_filter_params:
        size_t struct_size
        float temperature
        int32_t top_k
        float top_p
        float min_p
        int32_t order
        fulmen_tensor temperatures
        fulmen_tensor top_ks
        fulmen_tensor top_ps
        fulmen_tensor min_ps
    ctypedef struct fulmen_softmax_args:
        size_t struct_size
        fulmen_tensor logits
        fulmen_tensor probs
        float temperature
        fulmen_tensor temperatures
    ctypedef struct fulmen_argmax_args:
        size_t struct_size
        fulmen_tensor x
        fulmen_tensor index
    ctypedef struct fulmen_sample_args:
        size_t struct_size
        fulmen_tensor input
        int32_t input_is_probs
        fulmen_filter_params filter
        uint64_t seed
        uint64_t offset
        fulmen_tensor seeds
        fulmen_tensor offsets
        fulmen_tensor row_ids
        fulmen_tensor tokens
        fulmen_tensor logprob
    ctypedef struct fulmen_filter_args:
        size_t struct_size
        fulmen_tensor input
        int32_t input_is_probs
        int32_t output_is_logits
        fulmen_filter_params filter
        fulmen_tensor output
    ctypedef struct fulmen_top_k_args:
        size_t struct_size
        fulmen_tensor x
        fulmen_tensor values
        fulmen_tensor indices
    ctypedef struct fulmen_op_spec:
        size_t struct_size
        int32_t op
        int32_t dtype
        const fulmen_attention_spec* attention
        const fulmen_attention_limits* limits

    const char* fulmen_version()
    const char* fulmen_status_name(fulmen_status)
    const char* fulmen_last_error()
    const char* fulmen_op_name(int)
    void fulmen_string_free(char*)
    fulmen_status fulmen_context_create(const fulmen_context_options*, fulmen_context**)
    void fulmen_context_destroy(fulmen_context*)
    int32_t fulmen_context_num_workers(const fulmen_context*)
    fulmen_status fulmen_seal(fulmen_context*)
    fulmen_status fulmen_scratch_init(fulmen_context*, void*, uint64_t, fulmen_stream)
    fulmen_status fulmen_attention_create(fulmen_context*, const fulmen_attention_spec*, const fulmen_attention_limits*,
                                           fulmen_attention**)
    void fulmen_attention_destroy(fulmen_attention*)
    fulmen_status fulmen_attention_sizes_of(const fulmen_attention*, fulmen_attention_sizes*)
    fulmen_status fulmen_attention_plan(const fulmen_attention*, const fulmen_attention_lengths*, void*, fulmen_stream)
    fulmen_status fulmen_attention_run(const fulmen_attention*, const fulmen_attention_tensors*, const void*, void*, fulmen_stream)
    fulmen_status fulmen_append_kv(fulmen_context*, const fulmen_append_kv_args*, fulmen_stream)
    fulmen_status fulmen_merge_states(fulmen_context*, const fulmen_merge_states_args*, fulmen_stream)
    fulmen_status fulmen_merge_state(fulmen_context*, const fulmen_merge_state_args*, fulmen_stream)
    fulmen_status fulmen_rope(fulmen_context*, const fulmen_rope_args*, fulmen_stream)
    fulmen_status fulmen_rope_append(fulmen_context*, const fulmen_rope_append_args*, fulmen_stream)
    fulmen_status fulmen_rms_norm(fulmen_context*, const fulmen_rms_norm_args*, fulmen_stream)
    fulmen_status fulmen_layer_norm(fulmen_context*, const fulmen_layer_norm_args*, fulmen_stream)
    fulmen_status fulmen_act_and_mul(fulmen_context*, const fulmen_act_and_mul_args*, fulmen_stream)
    fulmen_status fulmen_softmax(fulmen_context*, const fulmen_softmax_args*, fulmen_stream)
    fulmen_status fulmen_argmax(fulmen_context*, const fulmen_argmax_args*, fulmen_stream)
    fulmen_status fulmen_sample(fulmen_context*, const fulmen_sample_args*, fulmen_stream)
    fulmen_status fulmen_filter(fulmen_context*, const fulmen_filter_args*, fulmen_stream)
    fulmen_status fulmen_top_k(fulmen_context*, const fulmen_top_k_args*, fulmen_stream)
    fulmen_status fulmen_supports(const char*, const fulmen_op_spec*)
    fulmen_status fulmen_explain(const char*, const fulmen_op_spec*, char**)
    fulmen_status fulmen_info(char**)
    ctypedef void (*fulmen_progress_fn)(void*, int32_t, int32_t, const char*, double) noexcept
    fulmen_status fulmen_prepare(fulmen_context*, const fulmen_op_spec*, int32_t, fulmen_progress_fn, void*)
    fulmen_status fulmen_prepare_target(const char*, const fulmen_context_options*, const fulmen_op_spec*, int32_t,
                                        fulmen_progress_fn, void*)
