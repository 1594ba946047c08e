"""Switching to fulmen.flashinfer: install(), the run command, names that are not offered, status()."""
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("torch")


def python(code, *command):
    result = subprocess.run([sys.executable, *command, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_light():
    python("""
        import sys, fulmen, fulmen.flashinfer
        fulmen.flashinfer.install()
        import flashinfer
        assert "torch" not in sys.modules
    """)


def test_install():
    python("""
        import fulmen.flashinfer, importlib.util
        fulmen.flashinfer.install(), fulmen.flashinfer.install()
        import flashinfer, flashinfer.norm, flashinfer.triton.cascade, flashinfer.fused_moe
        from flashinfer.sampling import top_k_renorm_prob
        assert flashinfer is fulmen.flashinfer and flashinfer.norm is fulmen.flashinfer.norm
        assert flashinfer.rmsnorm is flashinfer.norm.rmsnorm and flashinfer.__version__
        for name in ("flashinfer", "flashinfer.decode", "flashinfer.comm", "flashinfer.jit.core"):
            assert importlib.util.find_spec(name) is not None, name
        try:
            import flashinfer.no_such_module
        except ModuleNotFoundError as error:
            assert "no_such_module" in str(error)
        else:
            raise AssertionError("imported what isn't there")
    """)


def test_install_after_another_flashinfer():
    python("""
        import sys, types, fulmen.flashinfer
        sys.modules["flashinfer"] = types.ModuleType("flashinfer")
        try:
            fulmen.flashinfer.install()
        except RuntimeError as error:
            assert "imported" in str(error)
        else:
            raise AssertionError("no error")
    """)


def test_run_reaches_workers():
    out = subprocess.run([sys.executable, "-m", "fulmen.flashinfer", "run", "--", sys.executable, "-c", textwrap.dedent("""
        import importlib.util, subprocess, sys
        assert importlib.util.find_spec("flashinfer") is not None and "fulmen" not in sys.modules
        child = "from flashinfer.norm import rmsnorm; import flashinfer, importlib.util as u; print(flashinfer.__name__, u.find_spec('flashinfer.page') is not None)"
        print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout)
        """)], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "fulmen.flashinfer True" in out.stdout


def test_every_name_is_there():
    import fulmen.flashinfer as fi
    for name in fi.__all__:
        assert callable(getattr(fi, name)), name
    for name in dir(fi):
        getattr(fi, name)


def test_refusals_are_one_error_and_counted():
    import fulmen.flashinfer as fi
    before = sum(fi.status()["refused"].values())
    for call in (fi.mm_fp8, fi.fused_moe.cutlass_fused_moe, fi.comm.allreduce_fusion, fi.BatchMLAPagedAttentionWrapper,
                 fi.rmsnorm_quant, fi.rope.rope_quantize_fp8, fi.jit.gen_customize_batch_prefill_module):
        names = call.__name__.strip("_")
        arguments = [None] * {"rmsnorm_quant": 5, "rope_quantize_fp8": 6}.get(names, 0)
        with pytest.raises(NotImplementedError, match="does not offer"):
            call(*arguments)
    assert sum(fi.status()["refused"].values()) == before + 7
    import torch
    served = fi.status()["served"].get("norm.rmsnorm", 0)
    fi.rmsnorm(torch.ones(2, 8), torch.ones(8))
    assert fi.status()["served"]["norm.rmsnorm"] == served + 1
