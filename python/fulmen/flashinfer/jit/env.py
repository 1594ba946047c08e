"""Where FlashInfer would keep what it compiles; nothing is written there."""
import pathlib

FLASHINFER_WORKSPACE_DIR = FLASHINFER_JIT_DIR = FLASHINFER_GEN_SRC_DIR = FLASHINFER_AOT_DIR = pathlib.Path("/nonexistent")
FLASHINFER_CSRC_DIR = FLASHINFER_INCLUDE_DIR = pathlib.Path("/nonexistent")
