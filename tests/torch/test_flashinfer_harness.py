"""The harness of FlashInfer's tests on a test file of our own: it passes what is right, and fails a module of zeros."""
import json
import pathlib
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", minversion="2.0")
RUN = pathlib.Path(__file__).resolve().parents[1] / "flashinfer" / "run.py"

CASES = '''
import pytest
import torch
import flashinfer


@pytest.mark.parametrize("width", [8, 111])
@pytest.mark.parametrize("dtype", [torch.float16, "float8"])
def test_norm(width, dtype):
    x = torch.randn(3, width, device="cuda:0")
    flashinfer.norm.rmsnorm(x, x[0].clone())  # compares nothing itself


def test_decode():
    q, k = torch.randn(4, 64, device="cuda"), torch.randn(33, 2, 64).to(0)
    flashinfer.single_decode_with_kv_cache(q, k, k)


def test_wrapper():
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(torch.empty(1 << 20, dtype=torch.uint8, device="cuda:0"), "HND")
    ends, last = torch.tensor([0, 3, 4], dtype=torch.int32), torch.tensor([2, 1], dtype=torch.int32)
    wrapper.plan(ends, torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([1, 0], dtype=torch.int32), last, 4, 2, 64, 16,
                 causal=True, q_data_type=torch.float32)
    wrapper.run(torch.randn(4, 4, 64, device="cuda:0"), torch.randn(5, 2, 2, 16, 64, device="cuda:0"), return_lse=True)


def test_sampling():
    flashinfer.sampling.top_p_sampling_from_probs(torch.softmax(torch.randn(40, 99), -1), 0.5)


def test_upstream_says_no():
    flashinfer.silu_and_mul(torch.randn(2, 8))
    assert 1 == 2
'''


def run(tmp_path, *options):
    tests = tmp_path / "upstream" / "tests" / "utils"
    tests.mkdir(parents=True, exist_ok=True)
    (tests / "test_norm.py").write_text(CASES.replace("torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([1, 0]",
                                                      "torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([2, 4, 1]"))
    out = tmp_path / "-".join(["out", *options])
    subprocess.run([sys.executable, RUN, "--upstream", tmp_path / "upstream", "--out", out, "--device", "cpu", *options],
                   check=True, capture_output=True)
    return json.loads((out / "results.json").read_text())["files"]["utils/test_norm.py"]


def test_what_is_right_passes(tmp_path):
    found = run(tmp_path)
    assert (found["collected"], found["run"], found["passed"], found["compared"]) == (8, 6, 5, 6)
    assert sum(found["left_out"].values()) == 2
    assert [(r["kind"], r["cases"]) for r in found["reasons"]] == [("failed by upstream", 1)]


def test_a_run_goes_on_where_it_stopped(tmp_path):
    whole = run(tmp_path)
    log = tmp_path / "out" / "utils-test_norm.py.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:4]) + "\n")  # the head and three cases
    (tmp_path / "out").rename(tmp_path / "out---resume")
    assert run(tmp_path, "--resume") == whole
    again = (tmp_path / "out---resume" / "utils-test_norm.py.jsonl").read_text().splitlines()
    assert again[:4] == lines[:4] and len(again) == len(lines) + 1  # and a second head


def test_zeros_fail(tmp_path):
    found = run(tmp_path, "--mutant", "zeros")
    assert (found["compared"], found["compared_failed"]) == (6, 6)
    assert {r["kind"] for r in found["reasons"]} == {"failed by upstream", "failed by oracle"}
