"""torch.compile keeps Fulmen's calls in one graph, and what it runs gives the bits of the eager call."""
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch.compiler")
if not hasattr(torch.compiler, "is_compiling") or not hasattr(torch.library, "register_fake"):
    pytest.skip("torch 2.4 or newer", allow_module_level=True)

import fulmen  # noqa: E402
import fulmen.flashinfer as fi  # noqa: E402
from fulmen.flash_attn import flash_attn_func, flash_attn_with_kvcache  # noqa: E402

DEVICE, DTYPE = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)


def randn(*shape, dtype=DTYPE):
    return torch.randn(*shape, device=DEVICE).to(dtype)


def same(function, *args):
    """Eager and compiled, each on copies of the arguments: results and arguments agree bit for bit."""
    torch._dynamo.reset()
    copies = [[x.clone() if isinstance(x, torch.Tensor) else x for x in args] for _ in range(2)]
    results = [f(*x) for f, x in zip((function, torch.compile(function, fullgraph=True, backend="aot_eager")), copies)]
    pairs = [*zip(*([x] if isinstance(x, torch.Tensor) else list(x) for x in results)), *zip(*copies)]
    for a, b in pairs:
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b)
    return results[0]


def test_row_ops():
    x, weight, bias = randn(5, 64), randn(64), randn(64)
    same(lambda x, w: fulmen.rms_norm(x * 2, w) + 1, x, weight)
    same(lambda x, r, w: fulmen.add_rms_norm(x, r, w) * r, x, randn(5, 64), weight)
    same(lambda x, w, b: fulmen.layer_norm(x, w, b), x, weight, bias)
    same(lambda x: fulmen.silu_and_mul(x), x)
    same(lambda x: fulmen.top_k(x, 3), x)
    same(lambda x: fulmen.argmax(x), x)


def test_sampling():
    logits = randn(4, 200, dtype=torch.float32)
    same(lambda x: fulmen.softmax(x, 0.7), logits)
    same(lambda x, t: fulmen.softmax(x, t), logits, torch.full((4,), 0.5, device=DEVICE))
    same(lambda x: fulmen.sample(x, top_k=20, top_p=0.9, seed=3), logits)
    same(lambda x, p: fulmen.sample(x, top_p=p, seed=3, offset=1), logits, torch.full((4,), 0.8, device=DEVICE))
    same(lambda x: fulmen.filter_probs(x, top_p=0.5), logits)


def test_rope_and_append():
    q, k, v = randn(6, 4, 32), randn(6, 2, 32), randn(6, 2, 32)
    positions, slots = torch.arange(6, device=DEVICE), torch.arange(6, device=DEVICE) + 3
    same(lambda q, k, p: fulmen.rope(q, k, positions=p, theta=1e5, scaling="linear", factor=2.0), q, k, positions)
    same(lambda k, v, a, b, s: fulmen.append_kv(k + 0, v, a, b, slot_mapping=s) or a + b, k, v, randn(4, 4, 2, 32),
         randn(4, 4, 2, 32), slots)


def test_attention():
    att = fulmen.Attention(fulmen.Context(DEVICE), [fulmen.Group(4, 2)], dtype="f16" if DEVICE == "cuda" else "f32", head_dim=32,
                           max_requests=2, max_rows=4, max_kv_len=16)
    rows, lens = torch.tensor([0, 1, 4], dtype=torch.int32, device=DEVICE), torch.tensor([7, 9], dtype=torch.int32, device=DEVICE)
    table = torch.arange(6, dtype=torch.int32, device=DEVICE).view(2, 3)

    def layer(q, k, v, rows, lens, table):
        att.plan(rows, lens)
        o, lse = att.run(q * 1.5, k, v, table, return_lse=True)
        return o * 2, lse
    same(layer, randn(4, 4, 32), randn(6, 4, 2, 32), randn(6, 4, 2, 32), rows, lens, table)


@pytest.mark.parametrize("return_lse", [False, True])
def test_wrappers(return_lse):
    page, dtype = 4, torch.float16
    cache, q = randn(6, 2, page, 2, 64, dtype=dtype), randn(2, 4, 64, dtype=dtype)
    index = [torch.tensor(x, dtype=torch.int32) for x in ([0, 2, 5], [0, 3, 1, 2, 5], [3, 1])]
    workspace = torch.empty(1 << 16, dtype=torch.uint8, device=DEVICE)
    decode = fi.BatchDecodeWithPagedKVCacheWrapper(workspace)
    decode.plan(*index, 4, 2, 64, page, q_data_type=dtype)
    prefill = fi.BatchPrefillWithPagedKVCacheWrapper(workspace)
    prefill.plan(torch.arange(3, dtype=torch.int32), *index, 4, 2, 64, page, causal=True, q_data_type=dtype)
    ragged = fi.BatchPrefillWithRaggedKVCacheWrapper(workspace)
    ragged.plan(torch.arange(3, dtype=torch.int32), torch.tensor([0, 3, 8], dtype=torch.int32), 4, 2, 64, q_data_type=dtype)
    for wrapper in (decode, prefill):
        same(lambda q, cache: wrapper.run(q * 2, cache, return_lse=return_lse), q, cache)
    same(lambda q, k, v: ragged.run(q, k, v, return_lse=return_lse), q, randn(8, 2, 64, dtype=dtype), randn(8, 2, 64, dtype=dtype))


def test_a_new_plan_needs_no_new_graph():
    page, dtype = 4, torch.float16
    cache, q = randn(8, 2, page, 2, 64, dtype=dtype), randn(2, 4, 64, dtype=dtype)
    decode = fi.BatchDecodeWithPagedKVCacheWrapper(torch.empty(1 << 16, dtype=torch.uint8, device=DEVICE))
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, cache: decode.run(q, cache), fullgraph=True, backend="aot_eager")
    for last in ([3, 1], [4, 2], [1, 1]):
        decode.plan(*(torch.tensor(x, dtype=torch.int32) for x in ([0, 2, 5], [0, 3, 1, 2, 5], last)), 4, 2, 64, page, q_data_type=dtype)
        assert torch.equal(compiled(q, cache), decode.run(q, cache))


def test_functions_of_the_drop_in():
    dtype = torch.float16
    x, weight = randn(5, 64, dtype=dtype), randn(64, dtype=dtype)
    same(lambda x, w: fi.rmsnorm(x, w), x, weight)
    same(lambda x, r, w: fi.fused_add_rmsnorm(x, r, w) or x + r, x, randn(5, 64, dtype=dtype), weight)
    same(lambda x: fi.silu_and_mul(x), x)
    v, s = randn(5, 4, 64, dtype=dtype), randn(5, 4, dtype=torch.float32)
    same(lambda v, s, w, t: fi.merge_state(v, s, w, t), v, s, randn(5, 4, 64, dtype=dtype), randn(5, 4, dtype=torch.float32))


def test_single_requests():
    dtype = torch.float16
    q, k, v = randn(5, 4, 64, dtype=dtype), randn(9, 2, 64, dtype=dtype), randn(9, 2, 64, dtype=dtype)
    mask = torch.rand(5, 9, device=DEVICE) < 0.5
    same(lambda q, k, v: fi.single_prefill_with_kv_cache(q * 2, k, v, causal=True, return_lse=True), q, k, v)
    same(lambda q, k, v, m: fi.single_prefill_with_kv_cache(q, k, v, custom_mask=m, logits_soft_cap=5.0), q, k, v, mask)
    same(lambda q, k, v: fi.single_decode_with_kv_cache(q[0], k, v, pos_encoding_mode="ROPE_LLAMA", v_scale=0.3), q, k, v)


def test_flash_attn():
    q, k, v = (randn(2, n, h, 64, dtype=torch.float16) for n, h in ((3, 4), (9, 2), (9, 2)))
    same(lambda q, k, v: flash_attn_func(q, k, v, causal=True, window_size=(4, 0), return_attn_probs=True)[:2], q, k, v)
    same(lambda q, k, v, a: flash_attn_func(q * 2, k, v, causal=True, softcap=5.0, alibi_slopes=a), q, k, v, randn(4, dtype=torch.float32))
    lens = torch.tensor([5, 7], dtype=torch.int32, device=DEVICE)
    same(lambda q, k, v, n: flash_attn_with_kvcache(q, k, v, k[:, :3], v[:, :3], cache_seqlens=n - 3, causal=True) + 1, q, k, v, lens)


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs are a GPU's")
def test_graphs_that_torch_makes():
    """mode="reduce-overhead": memory that outlives a call is no part of the graph's pool."""
    torch._dynamo.reset()
    calls = {
        "single_decode": lambda q, k, v: fi.single_decode_with_kv_cache(q[0, 0], k[0], v[0]),
        "alibi": lambda q, k, v: fi.single_decode_with_kv_cache(q[0, 0], k[0], v[0], pos_encoding_mode="ALIBI"),
        "flash_attn": lambda q, k, v: flash_attn_func(q, k, v, causal=True),
        "append": lambda q, k, v: flash_attn_with_kvcache(q, k, v, k[:, :3], v[:, :3], cache_seqlens=6, causal=True),
        "small ops": lambda q, k, v: fulmen.silu_and_mul(fulmen.rms_norm(q.view(-1, 64), k[0, 0, 0])) + 1,
    }
    for name, call in calls.items():
        compiled = torch.compile(call, mode="reduce-overhead", fullgraph=True)
        for _ in range(4):  # warmed up, captured, replayed twice
            args = [randn(2, n, h, 64, dtype=torch.float16) for n, h in ((3, 4), (9, 2), (9, 2))]
            copies = [x.clone() for x in args]
            want, found = call(*args), compiled(*copies)
            for a, b in zip((want, *args), (found, *copies)):
                assert torch.equal(a, b), name


def test_a_cascade():
    page, dtype, i32 = 4, torch.float16, lambda *x: torch.tensor(x, dtype=torch.int32)
    cascade = fi.MultiLevelCascadeAttentionWrapper(2, torch.empty(1 << 16, dtype=torch.uint8, device=DEVICE))
    for mode in ("NONE", "ALIBI"):  # one call, and level by level
        cascade.plan([i32(0, 2), i32(0, 1, 2)], [i32(0, 2), i32(0, 1, 2)], [i32(0, 1), i32(2, 3)], [i32(4), i32(2, 3)], 4, 2, 64, page,
                     pos_encoding_mode=mode, q_data_type=dtype)
        same(lambda q, cache: cascade.run(q, cache), randn(2, 4, 64, dtype=dtype), randn(4, 2, page, 2, 64, dtype=dtype))


def test_pages_rotations_and_filters():
    dtype, i32 = torch.float16, lambda *x: torch.tensor(x, dtype=torch.int32, device=DEVICE)
    q, k, cache = randn(5, 4, 64, dtype=dtype), randn(5, 2, 64, dtype=dtype), torch.zeros(4, 2, 4, 2, 64, dtype=dtype, device=DEVICE)
    same(lambda k, cache: fi.append_paged_kv_cache(k, k + 1, i32(0, 0, 0, 1, 1), i32(0, 1, 2, 0, 1), cache, i32(0, 1, 2), i32(0, 1),
                                                   i32(3, 2)) or cache * 2, k, cache)
    same(lambda q, k, p: fi.apply_rope_pos_ids(q, k, p), q, k, i32(0, 1, 2, 3, 4))
    same(lambda q, k, p: fi.apply_rope_pos_ids_inplace(q, k, p) or q + 1, q, k, i32(0, 1, 2, 3, 4))
    probs = torch.softmax(randn(4, 50, dtype=torch.float32), -1)
    same(lambda p: fi.sampling.top_k_renorm_probs(p, 5), probs)
    same(lambda p: fi.sampling.top_k_top_p_sampling_from_probs(p, 5, 0.9, seed=1, offset=2), probs)
