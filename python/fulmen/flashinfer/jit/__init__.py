"""FlashInfer's builders of compiled modules by name. Fulmen compiles in the process when a kernel is first used, so a
spec is only a name and building it does nothing."""
import pathlib

from .._api import refuse


class MissingJITCacheError(RuntimeError):
    """Raised by FlashInfer where a module was not built ahead of time; never raised here."""

    def __init__(self, message="", spec=None):
        super().__init__(message)
        self.spec = spec


class JitSpec:
    """A module's name. `build_and_load` gives a module that any attribute of can be called on: it refuses."""
    sources, needs_device_linking = (), False
    aot_path = jit_library_path = pathlib.Path("/nonexistent")
    is_aot = True

    def __init__(self, name):
        self.name = name

    def build(self, verbose=False):
        pass

    def build_and_load(self):
        return _Module(self.name)


class _Module:
    def __init__(self, name):
        self.name = name

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: refuse(f"calls of FlashInfer's compiled modules ({self.name}.{name})")


def build_jit_specs(specs, verbose=False, skip_prebuilt=True):
    """Does nothing."""


def gen_jit_spec(name, sources=(), *args, **kwargs):
    return JitSpec(name)


def _generator(name):
    def generate(*args, **kwargs):
        return JitSpec("_".join([name, *(str(a).replace("torch.", "") for a in args)]))
    generate.__name__ = generate.__qualname__ = f"gen_{name}_module"
    return generate


def _refused_variant(name):
    def generate(*args, **kwargs):
        refuse(f"variants written in CUDA C++ ({name})")
    generate.__name__ = generate.__qualname__ = name
    return generate


_SPECS = """act_and_mul batch_attention batch_decode batch_mla batch_prefill batch_prefill_attention_sink fmha_v2 gemm
    gemm_sm90 norm page pod quantization sampling single_decode single_prefill topk trtllm_gen_fmha xqa""".split()
_VARIANTS = [f"gen_customize_{kind}_module" for kind in ("single_decode", "single_prefill", "batch_decode", "batch_prefill")]
globals().update({f"gen_{name}_module": _generator(name) for name in _SPECS})
globals().update({name: _refused_variant(name) for name in _VARIANTS})

from . import attention, core, env, gemm, utils, xqa  # noqa: E402
