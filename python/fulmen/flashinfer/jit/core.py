"""Names of flashinfer.jit.core."""
from . import JitSpec, MissingJITCacheError, build_jit_specs, gen_jit_spec
