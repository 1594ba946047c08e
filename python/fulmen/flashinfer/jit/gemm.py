"""Names of flashinfer.jit.gemm."""
from . import gen_gemm_module, gen_gemm_sm90_module
