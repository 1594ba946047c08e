"""FlashInfer's Triton kernels by name; cascade is offered."""
