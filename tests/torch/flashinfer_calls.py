"""What the tests of fulmen.flashinfer's wrappers share."""
import pytest
import torch

from attention_reference import slopes


def workspace(device, size=4096):
    return torch.empty(size, dtype=torch.uint8, device=device)


def indptr_of(lengths, device="cpu"):
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def supported(call):
    """Runs a call; what this device hasn't got yet is skipped by name."""
    try:
        return call()
    except NotImplementedError as error:
        if "on cuda" in str(error):
            pytest.skip(str(error))
        raise


def reference_options(options, hq):
    found = {"window_left": options.get("window_left", -1), "soft_cap": options.get("logits_soft_cap", 0.0),
             "sm_scale": options.get("sm_scale")}
    mode = options.get("pos_encoding_mode")
    if mode == "ROPE_LLAMA":
        found["rope"] = (options.get("rope_theta", 1e4), options.get("rope_scale", 1.0))
    if mode == "ALIBI":
        found["alibi"] = slopes(hq)
    return found
