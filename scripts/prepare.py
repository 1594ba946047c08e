#!/usr/bin/env python3
"""Fills a cache directory with every kernel of a target, without a driver or a GPU.

usage: prepare.py --lib libfulmen.so --header fulmen.h --target sm_90a --cache DIR [--nvrtc FILE]
"""
import argparse
import ctypes
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../bench/gpu"))
import capi  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in ("lib", "header", "target", "cache"):
    parser.add_argument("--" + name, required=True)
parser.add_argument("--nvrtc")
args = parser.parse_args()
fulmen = capi.Fulmen(args.lib, args.header)
os.makedirs(args.cache, mode=0o700, exist_ok=True)
options = fulmen.new("context_options", cache_dir=args.cache.encode(), nvrtc_path=args.nvrtc.encode() if args.nvrtc else None)
total = []


@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p, ctypes.c_double)
def progress(_, done, count, kernel, seconds):
    total.append(seconds)
    print(f"\r\033[K[{done}/{count}] {kernel.decode()} {seconds:.2f} s", end="", flush=True)


fulmen.check(fulmen.lib.fulmen_prepare_target(args.target.encode(), ctypes.byref(options), None, 0, progress, None))
print(f"\r\033[K{len(total)} kernels for {args.target}, {sum(total):.1f} s of compiling, slowest {max(total, default=0):.2f} s")
