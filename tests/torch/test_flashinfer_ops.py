"""fulmen.flashinfer around attention: results against plain torch, and the errors and rules that clients count on."""
import math

import pytest

torch = pytest.importorskip("torch")
import fulmen.flashinfer as fi  # noqa: E402


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------ pages
def page_table():
    """Requests of 5, 0 and 9 keys in pages of 4, three pages of seven in use out of order."""
    return torch.tensor([0, 2, 2, 5]), torch.tensor([6, 0, 3, 1, 5]), torch.tensor([1, 0, 1]), 4


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("pair", [False, True])
def test_append(layout, pair):
    indptr, indices, last, page = page_table()
    appended = torch.tensor([0, 2, 2, 5])
    lens = fi.get_seq_lens(indptr, last, page)
    assert lens.tolist() == [5, 0, 9]
    batch, position = fi.get_batch_indices_positions(appended, lens, 6)
    assert batch.tolist() == [0, 0, 2, 2, 2, -1] and position.tolist() == [3, 4, 6, 7, 8, 0]
    shape = (7, page, 2, 8) if layout == "NHD" else (7, 2, page, 8)
    k, v = torch.zeros(shape), torch.zeros(shape)
    both = torch.stack([k, v], 1)
    cache = (k, v) if pair else both
    x, y = torch.randn(6, 2, 8), torch.randn(6, 2, 8)
    fi.append_paged_kv_cache(x, y, batch, position, cache, indices, indptr, last, layout)
    for rows, filled in ((x, k if pair else both[:, 0]), (y, v if pair else both[:, 1])):
        filled = filled if layout == "NHD" else filled.transpose(1, 2)
        expected = torch.zeros(7, page, 2, 8)
        for i in range(5):
            at = int(position[i])
            expected[indices[indptr[batch[i]] + at // page], at % page] = rows[i]
        assert torch.equal(filled, expected)


def test_append_skips_what_lies_outside():
    indptr, indices, last, page = page_table()
    k = torch.zeros(7, page, 1, 8)
    x = torch.ones(3, 1, 8)
    fi.append_paged_kv_cache(x, x, torch.tensor([-1, 5, 0]), torch.tensor([0, 0, 8]), (k, k.clone()), indices, indptr, last)
    assert not k.any()


def test_append_mla():
    indptr, indices, last, page = page_table()
    ckv, kpe = torch.zeros(7, page, 64), torch.zeros(7, page, 16)
    x, y = torch.randn(2, 64), torch.randn(2, 16)
    fi.append_paged_mla_kv_cache(x, y, torch.tensor([0, 2]), torch.tensor([4, 0]), ckv, kpe, indices, indptr, last)
    assert torch.equal(ckv[0, 0], x[0]) and torch.equal(ckv[3, 0], x[1]) and torch.equal(kpe[0, 0], y[0])


def test_a_list_is_no_cache():
    indptr, indices, last, page = page_table()
    k = torch.zeros(7, page, 1, 8)
    with pytest.raises(KeyError):
        fi.append_paged_kv_cache(k[0], k[0], last, last, [k, k], indices, indptr, last)


# ------------------------------------------------------------------------------------------ merges
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merges(dtype):
    torch.manual_seed(0)
    v, s = torch.randn(5, 3, 2, 8).to(dtype), torch.randn(5, 3, 2) * 4
    s[0, 1], s[1] = -math.inf, -math.inf
    total = torch.logsumexp(s.double() * math.log(2), 1) / math.log(2)
    expected = (torch.exp2(s.double() - total[:, None]).nan_to_num(0)[..., None] * v.double()).sum(1)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    got_v, got_s = fi.merge_states(v, s)
    close(got_v, expected, tolerance), close(got_s, total)
    two_v, two_s = fi.merge_state(v[:, 0], s[:, 0], v[:, 1], s[:, 1])
    mine, mine_s = v[:, 0].clone(), s[:, 0].clone()
    fi.merge_state_in_place(mine, mine_s, v[:, 1], s[:, 1], mask=torch.tensor([True, True, False, True, False]))
    assert torch.equal(mine[2], v[2, 0]) and torch.equal(mine_s[4], s[4, 0])
    assert torch.equal(mine[0], two_v[0]) and torch.equal(mine_s[3], two_s[3])
    from fulmen.flashinfer.triton.cascade import variable_length_merge_states
    long_v, long_s = variable_length_merge_states(v.reshape(15, 2, 8), s.reshape(15, 2), torch.tensor([0, 3, 6, 6, 15]))
    close(long_v[0], expected[0], tolerance), close(long_s[0], total[0])
    assert not long_v[2].any() and bool((long_s[2] == -math.inf).all())


# ------------------------------------------------------------------------------------------ RoPE, norms, activations
@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize("rotary_dim", [None, 8])
@pytest.mark.parametrize("llama31", [False, True])
def test_rope(interleave, rotary_dim, llama31):
    torch.manual_seed(0)
    packed = torch.randn(7, 4 * 16)
    q, k = packed[:, :32].view(7, 2, 16), packed[:, 32:48].view(7, 1, 16)  # slices of a row
    indptr, offsets = torch.tensor([0, 3, 3, 7]), torch.tensor([10, 0, 100])
    at = torch.tensor([10, 11, 12, 100, 101, 102, 103])
    width, theta, scale = rotary_dim or 16, (5e5 if llama31 else 1e4), (8 if llama31 else 2)
    frequency = theta ** (-2 * torch.arange(width // 2).double() / width)
    if llama31:
        s = ((8192 * frequency / (2 * math.pi) - 1) / 3).clamp(0, 1)
        frequency = (1 - s) * frequency / scale + s * frequency
    else:
        frequency = frequency / scale
    cos, sin = ((at[:, None] * frequency).cos()[:, None], (at[:, None] * frequency).sin()[:, None])

    def rotated(x):
        y = x.double().clone()
        a, b = (slice(0, width, 2), slice(1, width, 2)) if interleave else (slice(0, width // 2), slice(width // 2, width))
        y[..., a], y[..., b] = x[..., a] * cos - x[..., b] * sin, x[..., b] * cos + x[..., a] * sin
        return y

    name = "apply_llama31_rope" if llama31 else "apply_rope"
    options = dict(rotary_dim=rotary_dim, interleave=interleave, rope_scale=scale)
    for got in (getattr(fi, name)(q, k, indptr, offsets, **options), getattr(fi, name + "_pos_ids")(q, k, at.int(), **options)):
        close(got[0], rotated(q)), close(got[1], rotated(k))
    q2, k2 = q.clone(), k.clone()
    assert getattr(fi, name + "_inplace")(q2, k2, indptr, offsets, **options) is None
    close(q2, rotated(q)), close(k2, rotated(k))
    cache = torch.cat([cos, sin], -1)[:, 0].float()
    flat = fi.apply_rope_with_cos_sin_cache(torch.arange(7), packed[:, :32], packed[:, 32:48], 16, cache, is_neox=not interleave)
    close(flat[0].view(7, 2, 16), rotated(q)), close(flat[1].view(7, 1, 16), rotated(k))
    with pytest.raises(ValueError, match="float32"):
        fi.apply_rope_with_cos_sin_cache(at, packed, packed, 16, cache.double())


def test_norms():
    torch.manual_seed(0)
    x, w = torch.randn(5, 2 * 111)[:, :111], torch.randn(111)
    plain = x.double() / torch.sqrt((x.double() ** 2).mean(-1, keepdim=True) + 1e-5)
    out = torch.empty(5, 111)
    assert fi.rmsnorm(x, w, 1e-5, out=out) is out
    close(out, plain * w), close(fi.gemma_rmsnorm(x, w, 1e-5), plain * (1 + w))
    heads = torch.randn(5, 3, 32)
    close(fi.rmsnorm(heads, w[:32]), heads.double() / torch.sqrt((heads.double() ** 2).mean(-1, keepdim=True) + 1e-6) * w[:32])
    y, residual = x.clone(), torch.randn(5, 111)
    total = y + residual
    assert fi.fused_add_rmsnorm(y, residual, w) is None
    close(residual, total), close(y, total.double() / torch.sqrt((total.double() ** 2).mean(-1, keepdim=True) + 1e-6) * w)
    close(fi.layernorm(x, w, w), torch.nn.functional.layer_norm(x.double(), (111,), w.double(), w.double(), 1e-6))


def test_activations():
    x = torch.randn(2, 3, 64)
    a, b = x.double().chunk(2, -1)
    close(fi.silu_and_mul(x), torch.nn.functional.silu(a) * b)
    close(fi.gelu_and_mul(x), torch.nn.functional.gelu(a) * b)
    close(fi.gelu_tanh_and_mul(x), 0.5 * a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))) * b)


# ------------------------------------------------------------------------------------------ sampling
@pytest.fixture
def probs():
    torch.manual_seed(0)
    return torch.softmax(torch.randn(6, 500) * 3, -1)


def test_filters(probs):
    ranked = probs.sort(-1, descending=True).values
    kept = fi.top_k_renorm_probs(probs, torch.tensor([1, 2, 3, 4, 5, 900]))
    assert (kept > 0).sum(-1).tolist() == [1, 2, 3, 4, 5, 500]
    close(kept.sum(-1), torch.ones(6))
    kept = fi.top_p_renorm_probs(probs, 0.7) > 0
    assert torch.equal(kept.sum(-1), (ranked.cumsum(-1) - ranked < 0.7).sum(-1))
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, -math.inf], [0.0, 1.0, 2.0, 3.0, 4.0]])
    masked = fi.top_k_mask_logits(logits, 2)
    assert torch.isfinite(masked).tolist() == [[False, True, True, True, False], [False, False, False, True, True]]
    assert torch.equal(masked[torch.isfinite(masked)], torch.tensor([3.0, 3.0, 3.0, 3.0, 4.0]))


def test_draws_follow_the_distribution():
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.0, 0.0, 1.0, 0.0]])
    which = torch.zeros(20000, dtype=torch.int64)
    for draw, expected in ((lambda: fi.sampling_from_probs(p, which), p[0]),
                           (lambda: fi.sampling_from_logits(p.log(), which), p[0]),
                           (lambda: fi.top_k_sampling_from_probs(p, 2, which), torch.tensor([2 / 3, 1 / 3, 0, 0])),
                           (lambda: fi.top_p_sampling_from_probs(p, 0.6, which), torch.tensor([2 / 3, 1 / 3, 0, 0])),
                           (lambda: fi.min_p_sampling_from_probs(p, 0.4, which), torch.tensor([2 / 3, 1 / 3, 0, 0]))):
        tokens = draw()
        assert tokens.dtype == torch.int64
        share = torch.bincount(tokens, minlength=4) / 20000
        assert float((share - expected).abs().max()) < 0.015


def test_seeds(probs):
    same = [fi.sampling_from_probs(probs, seed=5, offset=8) for _ in range(2)]
    assert torch.equal(*same)
    one = fi.top_k_top_p_sampling_from_probs(probs, 50, 0.9, seed=torch.tensor([5]), offset=torch.tensor([8]))
    assert torch.equal(one, fi.top_k_top_p_sampling_from_probs(probs, 50, 0.9, seed=torch.tensor([5] * 6), offset=torch.tensor([8] * 6)))
    many = torch.zeros(2000, dtype=torch.int32)
    apart = [fi.sampling_from_probs(probs, many, seed=torch.tensor([s]), offset=torch.tensor([o])) for s, o in ((5, 8), (5, 12), (6, 8))]
    assert len(apart[0].unique()) > 10 and not torch.equal(apart[0], apart[1]) and not torch.equal(apart[0], apart[2])
    generators = [torch.Generator() for _ in range(2)]
    assert torch.equal(*[fi.sampling_from_probs(probs, generator=g) for g in generators])


def test_rows_without_mass(probs):
    probs[1], probs[2] = math.nan, 0.0
    tokens, valid = fi.top_p_sampling_from_probs(probs, 0.9, return_valid=True)
    assert valid.tolist() == [True, False, False, True, True, True] and tokens[1] == tokens[2] == 0
    with pytest.raises(ValueError, match="Input probs contains NaN."):
        fi.sampling_from_probs(probs, check_nan=True)


@pytest.mark.parametrize("value, text", [(torch.ones(6, 2), "got a 2D tensor"), (torch.tensor(1.0), "got a 0-dimensional"),
                                         (torch.ones(4), "batch size mismatch")])
def test_threshold_shapes(probs, value, text):
    with pytest.raises(ValueError, match=text):
        fi.min_p_sampling_from_probs(probs, value)


def test_speculation():
    torch.manual_seed(0)
    batch = 4000
    draft, target = torch.softmax(torch.randn(2, 6), -1), torch.softmax(torch.randn(3, 6), -1)
    ids = torch.stack([torch.multinomial(draft[i], batch, replacement=True) for i in range(2)], 1)
    count = torch.full((batch,), 7, dtype=torch.int32)
    tokens, accepted, emitted = fi.chain_speculative_sampling(draft.expand(batch, 2, 6), ids, target.expand(batch, 3, 6),
                                                              maybe_output_emitted_draft_token_num=count)
    assert emitted is count
    n = count - 7
    assert torch.equal(n + 1, (tokens >= 0).sum(-1).int())
    for i in range(2):
        assert torch.equal(tokens[n > i, i].long(), ids[n > i, i])
    share = torch.bincount(tokens[:, 0].long(), minlength=6) / batch
    assert float((share - target[0]).abs().max()) < 0.03
    sure = torch.minimum(draft, target[:2]).sum()
    assert abs(float(accepted.float().mean()) - float(sure)) < 0.05


def test_pipeline(probs):
    from fulmen.flashinfer.logits_processor import (LogitsPipe, MinP, Sample, Softmax, Temperature, TensorType, TopK, TopP)
    logits = probs.log()
    pipe = LogitsPipe([Temperature(), Softmax(), TopK(joint_topk_topp=True), TopP(), Sample()])
    assert [type(op).__name__ for op in pipe.compiled_ops] == ["FusedTemperatureSoftmaxOp", "FusedProbsTopKTopPSampleOp"]
    drawn = pipe(logits, temperature=0.5, top_k=10, top_p=0.8, seed=1, offset=2)
    hot = fi.softmax(logits, 0.5)
    assert torch.equal(drawn, fi.top_k_top_p_sampling_from_probs(hot, 10, 0.8, filter_apply_order="joint", seed=1, offset=2))
    close(LogitsPipe([MinP()], compile=False)(probs, min_p=0.1).sum(-1), torch.ones(6))
    for wrong in ([Sample()], [Softmax(), Temperature()], [Softmax(), Sample(), TopP()], []):
        with pytest.raises(ValueError):
            LogitsPipe(wrong)
    for wrong in ({"temperature": 1}, {"temperature": -1.0}, {}):
        with pytest.raises(ValueError):
            LogitsPipe([Temperature()])(logits, **wrong)
    with pytest.raises(ValueError):
        LogitsPipe([TopK()], input_type=TensorType.PROBS)(probs, top_k=2.5)


# ------------------------------------------------------------------------------------------ bits, top-k
def test_bits():
    numpy = pytest.importorskip("numpy")
    torch.manual_seed(0)
    x = torch.rand(203) < 0.5
    ends = torch.tensor([0, 0, 3, 20, 203])
    for order in ("big", "little"):
        assert fi.packbits(x, order).tolist() == numpy.packbits(x.numpy(), bitorder=order).tolist()
        y, starts = fi.segment_packbits(x, ends, order)
        assert starts.tolist() == [0, 0, 1, 4, 27]
        for i in range(4):
            assert y[starts[i]:starts[i + 1]].tolist() == numpy.packbits(x[ends[i]:ends[i + 1]].numpy(), bitorder=order).tolist()


def test_top_k():
    x = torch.tensor([[1.0, 5.0, 5.0, 2.0, 5.0]])
    assert fi.top_k(x, 2, sorted=True)[1].tolist() == [[1, 2]]
    assert fi.top_k(x, 2, tie_break=fi.TopKTieBreak.LARGE)[1].tolist() == [[2, 4]]
    values, indices = fi.top_k(x, 4, sorted=True, tie_break=2)
    assert values.tolist() == [[5.0, 5.0, 5.0, 2.0]] and indices.dtype == torch.int64
