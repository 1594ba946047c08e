#!/usr/bin/env python3
"""Whether a real GPU shows the faults of tests/kernels/public_faults.cuh, which the emulator reports each time.

Each kernel runs with its fault and with the fix on the same bytes, many times, in a process of its own: a fault may break the context or
never end. Shown means: another result than the fix's, an error of the driver, or no end. Buffers lie in one allocation full of NaN and
shared memory is left full of NaN before each run, so that what is read by mistake isn't a zero by chance.

usage: public_faults.py [-o FAULTS.json] [--runs N] [--nvrtc libnvrtc.so]
       public_faults.py --table RESULT.json      writes the last column of docs/public-faults.md from a result file
"""
import argparse
import ctypes
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import nvrtc  # noqa: E402
from nvrtc import ROOT  # noqa: E402

PAGE = os.path.join(ROOT, "docs/public-faults.md")
SUITE = "faults of public projects"
SECONDS, GAP, SHARED = 20, 1 << 16, 4096
WORDS = {"in": 1024, "out": 64, "scratch": 1, "blocks": 1, "threads": 64, "n": 0}


class Args(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("in_", "out", "scratch", "counter", "table")] + [("n", ctypes.c_int32), ("fixed", ctypes.c_bool)]


def faults():
    """The rows of public_faults_test.cpp: {"source", "kernel", sizes, "in": floats, "table": ints}."""
    with open(os.path.join(ROOT, "tests/kernels/public_faults_test.cpp")) as file:
        text = file.read()
    rows = []
    for source, kernel, setup in re.findall(r'\{"(https://[^"]+)",\s+"[^"]+", faults::(\w+), \{(.*?)\}\},\n', text):
        row = {"source": source, "kernel": kernel, **WORDS, "table": [0], "in": [float(i + 1) for i in range(1024)]}
        row.update({name: int(value) for name, value in re.findall(r"\.(blocks|threads|out|scratch|n) = (\d+)", setup)})
        table = re.search(r"\.table = \{([^}]*)\}", setup)
        if table:
            row["table"] = [int(v) for v in table[1].split(",")]
        values = re.search(r"\.in = ones\((\d+), (\d+), (\S+?)\)", setup)
        if values:
            some, size, rest = int(values[1]), int(values[2]), float(values[3].replace("INFINITY", "inf"))
            row["in"] = [1.0] * some + [rest] * (size - some)
        rows.append(row)
    return rows


def compile_faults(path, rows, arch):
    source = "#include <tests/kernels/public_faults.cuh>\nusing namespace fulmen;\n"
    for row in rows:
        source += f'extern "C" __global__ void {row["kernel"]}(const faults::Args a) {{ faults::{row["kernel"]}(a); }}\n'
    source += ('extern "C" __global__ void dirty_shared() { for (int i = threadIdx.x; i < 1024; i += blockDim.x) '
               "dynamic_shared<volatile uint32_t>()[i] = 0xffffffffu; }\n")
    headers = nvrtc.headers("kernels") + [os.path.join(ROOT, "tests/kernels/public_faults.cuh")]
    return nvrtc.compile_cubin(nvrtc.load(path), source.encode(), "public_faults.cu", headers, arch)


class CudaError(RuntimeError):
    pass


class Cuda:
    """The driver, this process's context on device 0, and the result of a call checked."""

    def __init__(self):
        self.lib = ctypes.CDLL("libcuda.so.1")
        self.device, self.context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(self.device), 0)

    def call(self, name, *arguments):
        result = getattr(self.lib, name)(*arguments)
        if result != 0:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorName(result, ctypes.byref(text))
            raise CudaError((text.value or b"error").decode().removeprefix("CUDA_ERROR_").lower().replace("_", " "))

    def capability(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(major), 75, self.device)
        self.call("cuDeviceGetAttribute", ctypes.byref(minor), 76, self.device)
        return f"sm_{major.value}{minor.value}"

    def name(self):
        text = ctypes.create_string_buffer(100)
        self.call("cuDeviceGetName", text, 99, self.device)
        return text.value.decode()

    def make_current(self):
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), self.device)
        self.call("cuCtxSetCurrent", self.context)


def run_one(row, cubin, runs):
    """In a process of its own: prints what the faulty kernel shows."""
    cuda = Cuda()
    cuda.make_current()
    module, kernel, dirty = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    cuda.call("cuModuleLoadData", ctypes.byref(module), cubin)
    cuda.call("cuModuleGetFunction", ctypes.byref(kernel), module, row["kernel"].encode())
    cuda.call("cuModuleGetFunction", ctypes.byref(dirty), module, b"dirty_shared")
    contents = {"in_": struct.pack(f"{len(row['in'])}f", *row["in"]), "out": b"\xff" * 4 * row["out"], "scratch": b"\xff" * 4 * row["scratch"],
                "counter": b"\0" * 16, "table": struct.pack(f"{len(row['table'])}i", *row["table"])}
    image, places = b"\xff" * GAP, {}
    for name, data in contents.items():
        places[name] = len(image)
        image += data + b"\xff" * (GAP - len(data))
    arena = ctypes.c_uint64()
    cuda.call("cuMemAlloc_v2", ctypes.byref(arena), ctypes.c_size_t(len(image)))
    host = ctypes.create_string_buffer(len(image))

    def results(fixed):
        cuda.call("cuMemcpyHtoD_v2", arena, image, ctypes.c_size_t(len(image)))
        cuda.call("cuLaunchKernel", dirty, 1056, 1, 1, 256, 1, 1, SHARED, None, None, None)
        args = Args(*[arena.value + places[name] for name in ("in_", "out", "scratch", "counter", "table")], row["n"], fixed)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        cuda.call("cuLaunchKernel", kernel, row["blocks"], 1, 1, row["threads"], 1, 1, SHARED, None, pointers, None)
        cuda.call("cuCtxSynchronize")
        cuda.call("cuMemcpyDtoH_v2", host, arena, ctypes.c_size_t(len(image)))
        return host.raw[places["out"]:places["out"] + 4 * row["out"]], host.raw[places["scratch"]:places["scratch"] + 4 * row["scratch"]]

    # Sums that take turns through memory are compared too; elsewhere scratch isn't a result.
    part = slice(0, 2) if row["kernel"] == "fuser_2391" else slice(0, 1)
    right = results(True)[part]
    for _ in range(20):
        if results(True)[part] != right:
            return "the fix differs from run to run"
    try:
        different = sum(results(False)[part] != right for _ in range(runs))
    except CudaError as error:
        return f"shown: {error}"
    return f"shown: other results in {different} of {runs} runs" if different else f"not in {runs} runs"


def in_its_own_process(index, cubin_path, runs):
    command = [sys.executable, os.path.abspath(__file__), "--one", str(index), "--cubin", cubin_path, "--runs", str(runs)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"shown: no end in {SECONDS} seconds"
    return done.stdout.strip() or f"not tried: {done.stderr.strip().splitlines()[-1][:200] if done.stderr else done.returncode}"


def write_table(result_path):
    with open(result_path) as file:
        result = json.load(file)
    found = next(row["found"] for row in result["tests"] if row["suite"] == SUITE)
    with open(PAGE) as file:
        lines = file.read().split("\n")
    for i, line in enumerate(lines):
        source = re.match(r"\| \[[^\]]+\]\((https://[^)]+)\)", line)
        if source and source[1] in found:
            lines[i] = "|".join(line.split("|")[:-2]) + f"| {found[source[1]]} |"
    with open(PAGE, "w") as file:
        file.write("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--nvrtc")
    parser.add_argument("--table", metavar="RESULT.json")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cubin", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        return write_table(arguments.table)
    rows = faults()
    if arguments.one is not None:
        with open(arguments.cubin, "rb") as file:
            print(run_one(rows[arguments.one], file.read(), arguments.runs))
        return None
    cuda = Cuda()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "faults.cubin")
        with open(path, "wb") as file:
            file.write(compile_faults(arguments.nvrtc, rows, cuda.capability()))
        with ThreadPoolExecutor(6) as pool:
            texts = list(pool.map(lambda i: in_its_own_process(i, path, arguments.runs), range(len(rows))))
    found = {row["source"]: text for row, text in zip(rows, texts)}
    for source, text in found.items():
        print(f"{text:40} {source}", flush=True)
    tried = [text for text in texts if text.startswith(("shown", "not in"))]
    result = {"suite": SUITE, "passed": len(tried), "failed": len(rows) - len(tried), "skipped": 0, "gpu": cuda.name(),
              "shown": sum(text.startswith("shown") for text in tried), "found": found}
    if arguments.output:
        with open(arguments.output, "w") as file:
            json.dump(result, file, indent=1)
    print(f"{result['shown']} of {len(rows)} shown, {len(rows) - len(tried)} not tried")
    return 1 if len(tried) < len(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
