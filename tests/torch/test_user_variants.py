"""A user's variant from Python, on a GPU."""
import struct

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("a user's variant is compiled for a GPU", allow_module_level=True)

import fulmen  # noqa: E402
from attention_reference import attention  # noqa: E402

SOURCE = """struct Every {
  struct Params { int step; float bias; };
  static FULMEN_FN bool visible(const Params& p, const VariantAt& at) { return at.key % p.step == 0; }
  static FULMEN_FN float logit(const Params& p, const VariantAt& at, float s) { return at.key == 0 ? s + p.bias : s; }
};"""


def attend(variant, params):
    torch.manual_seed(0)
    q = torch.randn(3, 4, 64, device="cuda", dtype=torch.float16)
    k, v = (torch.randn(5, 8, 2, 64, device="cuda", dtype=torch.float16) for _ in range(2))
    att = fulmen.Attention(fulmen.Context("cuda"), [fulmen.Group(4, 2, causal=False)], dtype="f16", head_dim=64, max_requests=1,
                           max_rows=3, max_kv_len=40, variant=variant)
    att.plan(*(torch.tensor(x, dtype=torch.int32, device="cuda") for x in ([0, 3], [40])))
    out = att.run(q, k, v, torch.arange(5, dtype=torch.int32, device="cuda")[None], variant_params=params)
    return out, q, k.view(40, 2, 64), v.view(40, 2, 64)


def test_a_mask():
    out, q, k, v = attend(("Every", SOURCE), struct.pack("if", 3, 0.0))
    mask = (torch.arange(40) % 3 == 0).expand(3, 40)
    torch.testing.assert_close(out.double().cpu(), attention(q, k, v, mask=mask)[0], rtol=2e-3, atol=2e-3)


def test_parameters_are_read():
    out, q, k, v = attend(("Every", SOURCE), struct.pack("if", 1, 60.0))  # all weight on the first key
    torch.testing.assert_close(out.double().cpu(), v[:1].double().cpu().repeat_interleave(2, 1).expand(3, 4, 64), rtol=2e-3, atol=2e-3)


def test_the_compilers_message():
    with pytest.raises(fulmen.FulmenError, match="Every"):
        attend(("Every", SOURCE.replace("p.step", "p.stride")), struct.pack("if", 1, 0.0))
