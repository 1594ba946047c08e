#!/usr/bin/env python3
"""Records the results of mma.sync on this machine's GPU, for tests/kernels/mma_vectors_test.cpp to replay.

Needs the driver, torch (for memory and its NVRTC) and this source tree. One run takes seconds.

With --against FOLDER nothing is recorded: the results are compared with those that the folder holds, the emulator's, and
-o gets a row of the counts.

usage: mma_vectors.py [-o tests/kernels/data/mma_GPU.txt] [--instructions N] [--nvrtc libnvrtc.so] [--against FOLDER]
"""
import argparse
import ctypes
import glob
import json
import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import nvrtc  # noqa: E402

PER_CHUNK = 512  # kPerChunk of mma_vectors.hpp


def compile_vectors(path, arch):
    with open(os.path.join(nvrtc.ROOT, "tests/gpu/mma_vectors.cu"), "rb") as file:
        source = file.read()
    return nvrtc.compile_cubin(nvrtc.load(path), source, "mma_vectors.cu", nvrtc.headers("kernels", "tests/gpu"), arch)


def call(status, what):
    if status != 0:
        sys.exit(f"{what} failed: {status}")


def compare(lines, arguments):
    """Lines of digests and results against every recorded file of the folder -> 1 where one differs."""
    differ, files, same = 0, sorted(glob.glob(os.path.join(arguments.against, "mma_*.txt"))), 0
    for path in files:
        with open(path) as file:
            recorded = file.read().splitlines()
        for mine, theirs in zip(lines[2:], recorded[2:]):  # after the names of the GPUs
            differ += mine != theirs
            same += mine == theirs
    row = {"suite": "mma.sync as the emulator has it", "passed": same, "failed": differ, "skipped": 0 if files else 1,
           "dot_products": 2 * 128 * arguments.instructions}
    if arguments.output:
        with open(arguments.output, "w") as file:
            json.dump(row, file, indent=1)
    print(json.dumps(row))
    return 1 if differ else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output")
    parser.add_argument("--instructions", type=int, default=160 * PER_CHUNK, help="per type; 128 dot products each")
    parser.add_argument("--full", type=int, default=40, help="instructions whose results are kept whole, per type")
    parser.add_argument("--seed", type=int, default=20251)
    parser.add_argument("--nvrtc")
    parser.add_argument("--against")
    arguments = parser.parse_args()
    torch.zeros(1, device="cuda")  # makes the context
    name = torch.cuda.get_device_name()
    major, minor = torch.cuda.get_device_capability()
    cubin = compile_vectors(arguments.nvrtc, f"sm_{major}{minor}")
    cuda = ctypes.CDLL("libcuda.so.1")
    module = ctypes.c_void_p()
    call(cuda.cuModuleLoadData(ctypes.byref(module), cubin), "cuModuleLoadData")
    lines = [f"gpu {name}", f"capability {major}.{minor}", f"seed {arguments.seed}", f"instructions {arguments.instructions}",
             f"full {arguments.full}"]
    for kind in ("bf16", "f16"):
        function = ctypes.c_void_p()
        call(cuda.cuModuleGetFunction(ctypes.byref(function), module, f"record_{kind}".encode()), "cuModuleGetFunction")
        full = torch.zeros(arguments.full * 128, dtype=torch.float32, device="cuda")
        digests = torch.zeros((arguments.instructions + PER_CHUNK - 1) // PER_CHUNK, dtype=torch.int64, device="cuda")
        values = [ctypes.c_ulonglong(arguments.seed), ctypes.c_ulonglong(arguments.instructions), ctypes.c_ulonglong(arguments.full),
                  ctypes.c_ulonglong(full.data_ptr()), ctypes.c_ulonglong(digests.data_ptr())]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(v) for v in values])
        torch.cuda.synchronize()
        call(cuda.cuLaunchKernel(function, 512, 1, 1, 128, 1, 1, 0, None, pointers, None), "cuLaunchKernel")
        torch.cuda.synchronize()
        lines.append(f"digests {kind} " + " ".join(f"{d & (2**64 - 1):016x}" for d in digests.cpu().tolist()))
        words = full.view(torch.int32).cpu().tolist()
        for i in range(arguments.full):
            lines.append(f"result {kind} {i} " + " ".join(f"{w & (2**32 - 1):08x}" for w in words[128 * i:128 * i + 128]))
    if arguments.against:
        sys.exit(compare(lines, arguments))
    output = arguments.output or os.path.join(nvrtc.ROOT, "tests/kernels/data", f"mma_{name.lower().replace(' ', '_')}.txt")
    os.makedirs(os.path.dirname(output), exist_ok=True)
    with open(output, "w") as file:
        file.write("\n".join(lines) + "\n")
    print(f"{output}: {2 * 128 * arguments.instructions} dot products")


if __name__ == "__main__":
    main()
