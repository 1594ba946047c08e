# The ops around attention, one call each.

def append_kv(Context context, k, v, k_cache, v_cache, slot_mapping, qo_indptr, kv_len, last_page_len, table, stream):
    cdef Call call = Call(context.device_index)
    cdef fulmen_append_kv_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.k, k, "k"); call.put(&a.v, v, "v"); call.put(&a.k_cache, k_cache, "k_cache")
    call.put(&a.v_cache, v_cache, "v_cache")
    call.put(&a.slot_mapping, slot_mapping, "slot_mapping"); call.put(&a.qo_indptr, qo_indptr, "qo_indptr")
    call.put(&a.kv_len, kv_len, "kv_len")
    call.put(&a.last_page_len, last_page_len, "last_page_len"); call.put_table(&a.table, table, "table")
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_append_kv(context.handle, &a, s)
    check(status)


def merge_states(Context context, part_o, part_lse, o, lse, bint lse_base2, stream):
    cdef Call call = Call(context.device_index)
    cdef fulmen_merge_states_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.part_o, part_o, "part_o"); call.put(&a.part_lse, part_lse, "part_lse"); call.put(&a.o, o, "out")
    call.put(&a.lse, lse, "lse")
    a.lse_base2 = lse_base2
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_merge_states(context.handle, &a, s)
    check(status)


def merge_state(Context context, o_a, lse_a, o_b, lse_b, o, lse, bint lse_base2, stream):
    cdef Call call = Call(context.device_index)
    cdef fulmen_merge_state_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.o_a, o_a, "o_a"); call.put(&a.lse_a, lse_a, "lse_a"); call.put(&a.o_b, o_b, "o_b")
    call.put(&a.lse_b, lse_b, "lse_b")
    call.put(&a.o, o, "out"); call.put(&a.lse, lse, "lse")
    a.lse_base2 = lse_base2
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_merge_state(context.handle, &a, s)
    check(status)


def rope(Context context, q, k, q_out, k_out, positions, cos_sin_cache, dict params, stream):
    cdef Call call = Call(context.device_index)
    cdef fulmen_rope_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.q, q, "q"); call.put(&a.k, k, "k"); call.put(&a.q_out, q_out, "q_out"); call.put(&a.k_out, k_out, "k_out")
    call.put(&a.positions, positions, "positions"); call.put(&a.cos_sin_cache, cos_sin_cache, "cos_sin_cache")
    put_rope(&a.params, params)
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_rope(context.handle, &a, s)
    check(status)


def rope_append(Context context, q, k, v, k_cache, v_cache, q_out, positions, cos_sin_cache, slot_mapping, qo_indptr, kv_len,
                last_page_len, table, dict params, stream):
    cdef Call call = Call(context.device_index)
    cdef fulmen_rope_append_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.q, q, "q"); call.put(&a.k, k, "k"); call.put(&a.v, v, "v"); call.put(&a.q_out, q_out, "q_out")
    call.put(&a.positions, positions, "positions"); call.put(&a.cos_sin_cache, cos_sin_cache, "cos_sin_cache")
    put_rope(&a.params, params)
    call.put(&a.k_cache, k_cache, "k_cache"); call.put(&a.v_cache, v_cache, "v_cache")
    call.put(&a.slot_mapping, slot_mapping, "slot_mapping")
    call.put(&a.qo_indptr, qo_indptr, "qo_indptr"); call.put(&a.kv_len, kv_len, "kv_len")
    call.put(&a.last_page_len, last_page_len, "last_page_len")
    call.put_table(&a.table, table, "table")
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_rope_append(context.handle, &a, s)
    check(status)


def rms_norm(Context context, x, weight, residual, out, float eps, float weight_offset, stream):
    cdef Call call = Call(context.device_index)
    cdef fulmen_rms_norm_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    a.eps, a.weight_offset = eps, weight_offset
    call.put(&a.x, x, "x"); call.put(&a.weight, weight, "weight"); call.put(&a.residual, residual, "residual")
    call.put(&a.out, out, "out")
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_rms_norm(context.handle, &a, s)
    check(status)


def layer_norm(Context context, x, weight, bias, out, float eps, stream):
    cdef Call call = Call(context.device_index)
    cdef fulmen_layer_norm_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    a.eps = eps
    call.put(&a.x, x, "x"); call.put(&a.weight, weight, "weight"); call.put(&a.bias, bias, "bias"); call.put(&a.out, out, "out")
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_layer_norm(context.handle, &a, s)
    check(status)


def act_and_mul(Context context, x, out, int activation, stream):
    cdef Call call = Call(context.device_index)
    cdef fulmen_act_and_mul_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    a.activation = activation
    call.put(&a.x, x, "x"); call.put(&a.out, out, "out")
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_act_and_mul(context.handle, &a, s)
    check(status)


def softmax(Context context, logits, probs, temperature, stream):
    cdef Call call = Call(context.device_index)
    cdef fulmen_softmax_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    if isinstance(temperature, (int, float)): a.temperature = temperature
    else: call.put(&a.temperatures, temperature, "temperature")
    call.put(&a.logits, logits, "logits"); call.put(&a.probs, probs, "out")
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_softmax(context.handle, &a, s)
    check(status)


def argmax(Context context, x, index, stream):
    cdef Call call = Call(context.device_index)
    cdef fulmen_argmax_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.x, x, "x"); call.put(&a.index, index, "out")
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_argmax(context.handle, &a, s)
    check(status)


def sample(Context context, input, bint is_probs, tokens, logprob, temperature, top_k, top_p, min_p, bint joint, seed,
           offset, row_ids, stream):
    cdef Call call = Call(context.device_index)
    cdef fulmen_sample_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    a.input_is_probs = is_probs
    put_filter(call, &a.filter, temperature, top_k, top_p, min_p, joint)
    if isinstance(seed, int): a.seed = seed & 0xFFFFFFFFFFFFFFFF
    else: call.put(&a.seeds, seed, "seed")
    if isinstance(offset, int): a.offset = offset & 0xFFFFFFFFFFFFFFFF
    else: call.put(&a.offsets, offset, "offset")
    call.put(&a.input, input, "input"); call.put(&a.tokens, tokens, "out"); call.put(&a.logprob, logprob, "logprob")
    call.put(&a.row_ids, row_ids, "row_ids")
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_sample(context.handle, &a, s)
    check(status)


def filter(Context context, input, bint is_probs, bint to_logits, output, temperature, top_k, top_p, min_p, bint joint, stream):
    cdef Call call = Call(context.device_index)
    cdef fulmen_filter_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    a.input_is_probs, a.output_is_logits = is_probs, to_logits
    put_filter(call, &a.filter, temperature, top_k, top_p, min_p, joint)
    call.put(&a.input, input, "input"); call.put(&a.output, output, "out")
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_filter(context.handle, &a, s)
    check(status)


def top_k(Context context, x, values, indices, stream):
    cdef Call call = Call(context.device_index)
    cdef fulmen_top_k_args a
    cdef fulmen_status status
    memset(&a, 0, sizeof(a))
    a.struct_size = sizeof(a)
    call.put(&a.x, x, "x"); call.put(&a.values, values, "values"); call.put(&a.indices, indices, "indices")
    cdef fulmen_stream s = stream_of(stream)
    with nogil:
        status = fulmen_top_k(context.handle, &a, s)
    check(status)
