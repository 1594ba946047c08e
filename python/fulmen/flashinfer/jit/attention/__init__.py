"""Names of flashinfer.jit.attention."""
from .. import (gen_batch_attention_module, gen_batch_decode_module, gen_batch_mla_module, gen_batch_prefill_attention_sink_module,
                gen_batch_prefill_module, gen_customize_batch_decode_module, gen_customize_batch_prefill_module,
                gen_customize_single_decode_module, gen_customize_single_prefill_module, gen_pod_module,
                gen_single_decode_module, gen_single_prefill_module)
from . import variants
