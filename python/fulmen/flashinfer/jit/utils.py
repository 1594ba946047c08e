"""Names of flashinfer.jit.utils."""
import torch

_NAMES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2",
          "uint8": "u8", "int8": "i8", "int32": "i32", "int64": "i64", "uint32": "u32", "uint64": "u64"}
filename_safe_dtype_map = {getattr(torch, name): short for name, short in _NAMES.items() if hasattr(torch, name)}
