"""Names of flashinfer.jit.xqa."""
from . import gen_xqa_module
