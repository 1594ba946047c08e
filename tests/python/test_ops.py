import threading

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import reference
from on_device import ON_GPU, fulmen, needs_cpu, real

RNG = np.random.default_rng(7)


@given(rows=st.integers(0, 9), hidden=st.sampled_from([1, 7, 64, 576, 1000]), pad=st.integers(0, 5),
       dtype=st.sampled_from(["float32", "float16"]))
@settings(max_examples=40, deadline=None)
def test_rms_norm_any_shape_and_stride(rows, hidden, pad, dtype):
    x = RNG.standard_normal((rows, hidden + pad)).astype(dtype)[:, :hidden]
    weight = RNG.standard_normal(hidden).astype(dtype)
    out = fulmen.rms_norm(x, weight, 1e-5)
    np.testing.assert_allclose(out, reference.rms_norm(x, weight, 1e-5), rtol=2e-3 if dtype == "float16" else 2e-5, atol=2e-3 if dtype == "float16" else 1e-6)


def test_gemma_and_residual():
    x, residual = (RNG.standard_normal((4, 32)).astype(np.float32) for _ in range(2))
    weight = RNG.standard_normal(32).astype(np.float32)
    np.testing.assert_allclose(fulmen.gemma_rms_norm(x, weight), reference.rms_norm(x, weight, 1e-6, 1.0), rtol=1e-5, atol=1e-6)
    want_residual = x + residual
    out = fulmen.add_rms_norm(x, residual, weight)
    assert out is x
    np.testing.assert_array_equal(residual, want_residual)
    np.testing.assert_allclose(out, reference.rms_norm(want_residual, weight, 1e-6), rtol=1e-5, atol=1e-6)


def test_bf16_through_typed():
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    weight = np.ones(64, np.float32)
    out = fulmen.rms_norm(fulmen.Typed(reference.to_bf16(x), "bf16"), weight)
    assert out.dtype == "bf16"
    exact = reference.rms_norm(reference.from_bf16(reference.to_bf16(x)), weight, 1e-6)
    np.testing.assert_allclose(reference.from_bf16(out.tensor), exact, rtol=2**-8)


def test_silu_gelu():
    from math import erf
    x = RNG.standard_normal((5, 20)).astype(np.float32)
    gate, up = x[:, :10].astype(np.float64), x[:, 10:].astype(np.float64)
    np.testing.assert_allclose(fulmen.silu_and_mul(x), gate / (1 + np.exp(-gate)) * up, rtol=1e-5, atol=1e-6)
    gelu = 0.5 * gate * (1 + np.vectorize(erf)(gate / np.sqrt(2)))
    np.testing.assert_allclose(fulmen.gelu_and_mul(x), gelu * up, rtol=1e-5, atol=1e-6)
    tanh = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    np.testing.assert_allclose(fulmen.gelu_tanh_and_mul(x), tanh * up, rtol=1e-5, atol=1e-6)


def test_rope_neox_and_interleaved():
    q, positions = RNG.standard_normal((6, 2, 16)).astype(np.float32), np.arange(10, 16, dtype=np.int32)
    angle = positions[:, None] * 10000.0 ** (-np.arange(8) / 8)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    neox, inter = q.copy(), q.copy()
    fulmen.rope(neox, positions=positions)
    fulmen.rope(inter, positions=positions, interleaved=1)
    a, b = q[..., :8].astype(np.float64), q[..., 8:].astype(np.float64)
    np.testing.assert_allclose(neox, np.concatenate([a * cos - b * sin, b * cos + a * sin], -1), rtol=1e-4, atol=1e-5)
    a, b = q[..., 0::2].astype(np.float64), q[..., 1::2].astype(np.float64)
    np.testing.assert_allclose(inter[..., 0::2], a * cos - b * sin, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(inter[..., 1::2], b * cos + a * sin, rtol=1e-4, atol=1e-5)


def test_rope_append_gives_the_bits_of_rope_and_append_kv():
    q, k, v = (RNG.standard_normal((6, heads, 16)).astype(np.float32) for heads in (4, 2, 2))
    positions, slots = np.arange(6, dtype=np.int64), np.array([3, 9, -1, 0, 15, 7])
    caches = [np.zeros((4, 4, 2, 16), np.float32) for _ in range(4)]
    q_want, k_want = fulmen.rope(q, k, positions=positions, q_out=np.empty_like(q), k_out=np.empty_like(k), interleaved=1)
    fulmen.append_kv(k_want, v, caches[0], caches[1], slot_mapping=slots)
    got = fulmen.rope_append(q, k, v, caches[2], caches[3], positions=positions, slot_mapping=slots, interleaved=1)
    np.testing.assert_array_equal(got, q_want)
    np.testing.assert_array_equal(caches[2], caches[0])
    np.testing.assert_array_equal(caches[3], caches[1])


def test_softmax_argmax_top_k():
    x = RNG.standard_normal((4, 301)).astype(np.float32)
    np.testing.assert_allclose(fulmen.softmax(x, 0.7), reference.softmax(x / np.float32(0.7)), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(fulmen.argmax(x), x.argmax(-1))
    x[:, 5] = x[:, 9] = 50.0
    values, indices = fulmen.top_k(x, 3)
    assert indices[:, :2].tolist() == [[5, 9]] * 4, "ties go to the lowest index"
    np.testing.assert_array_equal(values, np.take_along_axis(x, indices.astype(np.int64), 1))


def test_sample_follows_its_filters_and_seed():
    logits = RNG.standard_normal((64, 100)).astype(np.float32)
    a, b = (fulmen.sample(logits, top_k=5, seed=3, offset=np.arange(64, dtype=np.int64)) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    top = np.argsort(-logits, 1, kind="stable")[:, :5]
    assert all(token in row for token, row in zip(a, top))
    np.testing.assert_array_equal(fulmen.sample(logits, temperature=0.0), logits.argmax(-1))
    kept = fulmen.filter_probs(logits, top_k=5)
    assert ((kept > 0).sum(1) == 5).all()
    np.testing.assert_allclose(kept.sum(1), 1, rtol=1e-5)
    assert (np.isfinite(fulmen.mask_logits(logits, top_k=5)).sum(1) == 5).all()
    logits[3, 7] = np.nan
    bad = fulmen.sample(logits, top_k=5, seed=3, offset=np.arange(64, dtype=np.int64))
    assert bad[3] == -1 and (np.delete(bad, 3) == np.delete(a, 3)).all(), "one bad row harms no other"


def test_merge_is_attention_over_both_parts():
    q = RNG.standard_normal((3, 2, 8)).astype(np.float32)
    k, v = (RNG.standard_normal((10, 2, 8)).astype(np.float32) for _ in range(2))
    parts = [reference.attention(q, k[s], v[s], causal=False) for s in (slice(0, 4), slice(4, 10))]
    whole, whole_lse = reference.attention(q, k, v, causal=False)
    o = np.stack([p[0] for p in parts]).astype(np.float32)
    lse = np.stack([p[1] for p in parts]).astype(np.float32)
    merged, merged_lse = fulmen.merge_states(o, lse)
    np.testing.assert_allclose(merged, whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(merged_lse, whole_lse, rtol=1e-5)
    np.testing.assert_allclose(fulmen.merge_state(o[0], lse[0], o[1], lse[1])[0], whole, rtol=1e-4, atol=1e-5)
    base2 = lse * np.float32(np.log2(np.e))
    for got in (fulmen.merge_states(o, base2, lse_base2=True), fulmen.merge_state(o[0], base2[0], o[1], base2[1], lse_base2=True),
                fulmen.merge_state(o[0], base2[0], o[1], base2[1], out=o[0], lse=base2[0], lse_base2=True)):  # the last over a part
        np.testing.assert_allclose(got[0], whole, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got[1], whole_lse * np.log2(np.e), rtol=1e-5)


def test_errors_name_argument_expected_and_found():
    x = np.zeros((2, 8), np.float32)
    with pytest.raises(fulmen.InvalidArgument, match=r"rms_norm: weight: expected .*8.*found .*9"):
        fulmen.rms_norm(x, np.zeros(9, np.float32))
    with pytest.raises(TypeError, match="weight: expected .*__dlpack__.* found list"):
        fulmen.rms_norm(x, [1.0] * 8, out=x)
    for nothing, kind in ((None, "NoneType"), ([[1.0]], "list")):
        with pytest.raises(TypeError, match=f"x: expected a tensor .*found {kind}"):
            fulmen.silu_and_mul(nothing)
    with pytest.raises(TypeError, match="temperature: expected .*found object"):
        fulmen.softmax(x, object())
    w = np.ones(8, np.float32)
    with pytest.raises(fulmen.InvalidArgument, match="weight: expected f32.*found complex64"):
        fulmen.rms_norm(x, w.astype(np.complex64))
    for name, call in (("x", lambda: fulmen.rms_norm(x.astype("f8"), w)), ("weight", lambda: fulmen.rms_norm(x, w.astype("f8"))),
                       ("temperature", lambda: fulmen.softmax(x, np.ones(2))),
                       ("top_k", lambda: fulmen.sample(x, top_k=np.ones(2))),
                       ("positions", lambda: fulmen.rope(x[None], positions=np.zeros(1)))):
        with pytest.raises(fulmen.InvalidArgument, match=f"^{name}: expected f32, .* found f64"):
            call()
    with pytest.raises(fulmen.InvalidArgument, match="^out: .*read"):
        frozen = x.copy()
        frozen.setflags(write=False)
        real.rms_norm(x, w, out=frozen)
    assert fulmen.supports("cpu", "rope", "i32").startswith("rope: dtype: expected")
    assert fulmen.supports("cpu", "rope", "bf16") == ""
    with pytest.raises(fulmen.InvalidArgument, match="dtype: expected one of f32, .* found 'f64'"):
        fulmen.supports("cpu", "rope", "f64")


def test_typed_is_as_wide_as_its_elements():
    with pytest.raises(real.InvalidArgument, match="dtype: expected one of f32.*found 'fp7'"):
        real.Typed(np.zeros((2, 8), np.uint8), "fp7")
    bytes_, floats = np.zeros((2, 8), np.uint8), np.zeros((2, 8), np.float32)
    for array, name in ((bytes_, "f32"), (bytes_, "bf16"), (floats, "bf16")):
        with pytest.raises(real.InvalidArgument, match=f"x: expected elements of .* bits.*found {8 * array.itemsize}"):
            real.rms_norm(real.Typed(array, name), np.ones(8, np.float32))


def test_threads_share_the_default_context():
    x, weight = RNG.standard_normal((64, 512)).astype(np.float32), np.ones(512, np.float32)
    want, wrong = fulmen.rms_norm(x, weight), []

    def work():
        for _ in range(50):
            if not np.array_equal(fulmen.rms_norm(x, weight), want):
                wrong.append(1)
    threads = [threading.Thread(target=work) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong
