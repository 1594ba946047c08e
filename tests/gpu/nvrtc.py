"""NVRTC for the programs of this folder: found, and a program compiled with the tree's headers embedded."""
import ctypes
import glob
import os
import sys

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))


def load(path=None):
    """The library at path, else FULMEN_NVRTC's, else the newest among Python's packages, else the system's."""
    named = path or os.environ.get("FULMEN_NVRTC")
    found = [named] if named else []
    for folder in sys.path:
        found += sorted(glob.glob(os.path.join(folder, "nvidia/**/libnvrtc.so.1[0-9]*"), recursive=True), reverse=True)
        found += glob.glob(os.path.join(folder, "torch/lib/libnvrtc*.so*"))
    for name in found + ["libnvrtc.so.13", "libnvrtc.so.12"]:
        if "builtins" in name:
            continue
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    sys.exit("no NVRTC found: give --nvrtc")


def compile_cubin(nvrtc, source, name, headers, arch):
    """The machine code of `source`, which may include `headers` (paths in the tree) by their paths from its root -> bytes."""
    names, texts = [], []
    for path in headers:
        names.append(os.path.relpath(path, ROOT).encode())
        with open(path, "rb") as file:
            texts.append(file.read())
    strings = ctypes.c_char_p * len(names)
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), len(names), strings(*texts), strings(*names))
    options = [b"--std=c++20", b"--device-as-default-execution-space", b"--fmad=false", f"--gpu-architecture={arch}".encode()]
    if nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)) != 0:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        sys.exit(log.value.decode())
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    return cubin.raw


def headers(*folders):
    """All .hpp and .cuh files below folders of the tree."""
    return [path for folder in folders for path in glob.glob(os.path.join(ROOT, folder, "**/*.*h*"), recursive=True)]
