#!/usr/bin/env python3
"""Checks Fulmen's CUDA kernels on a real GPU against float64 references, the CPU back end, and themselves.

Error may be at most twice that of a plain evaluation in the same precision, plus a floor. Unwritten cache slots and
padding are NaN. Every call is made --repeats times and must give the same bits. Every check prints a line as it ends and
the JSON file is rewritten after each, so that a run that is cut short loses nothing; --resume skips what a file already
holds as passed.

usage: check.py --lib libfulmen.so --header fulmen.h -o CHECK.json [--only PATTERN] [--budget SECONDS] [--resume]
"""
import argparse
import fnmatch
import json
import os
import sys
import time
import traceback

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import harness  # noqa: E402
import attention_checks, op_checks, call_checks  # noqa: E401, E402, F401 - they register their checks


def selected(name, patterns):
    """A pattern is the beginning of a name, or has the shell's wildcards. No pattern: all."""
    return not patterns or any(name.startswith(p) or fnmatch.fnmatch(name, p) for p in patterns)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", required=True)
    parser.add_argument("--header", required=True)
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--kernels", metavar="TREE", help="a source tree to take kernels/ from")
    parser.add_argument("--only", action="append", help="the beginning of a check's name, or a pattern with * and ?; may be repeated")
    parser.add_argument("--budget", type=float, default=0, help="seconds after which no new check starts")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--repeats", type=int, default=100)
    args = parser.parse_args()
    torch.zeros(1, device=harness.DEV)
    env = harness.Env(args.lib, args.header, args.repeats, args.kernels)
    done = {}
    if args.resume and os.path.exists(args.out):
        done = {c["check"]: c for c in json.load(open(args.out))["checks"] if c["result"] == "passed"}
    started, results = time.time(), list(done.values())
    for name, function, kwargs in harness.CHECKS:
        if name in done or not selected(name, args.only):
            continue
        if args.budget and time.time() - started > args.budget:
            results.append(dict(check=name, result="skipped", why="out of time"))
            continue
        begin = time.time()
        try:
            function(env, **kwargs)
            row = dict(check=name, result="passed")
        except harness.capi.FulmenError as error:
            unsupported = any(word in str(error) for word in ("unsupported", "on cuda", "no CUDA"))
            row = dict(check=name, result="unsupported" if unsupported else "failed", why=str(error)[:600])
        except Exception as error:
            row = dict(check=name, result="failed", why=f"{type(error).__name__}: {str(error)[:600]}",
                       trace=traceback.format_exc(limit=-2)[-500:])
            if "CUDA error" in str(error):
                results.append(row)
                print(f"FAILED {name}: {row['why']}: the device is lost, stopping", flush=True)
                break
        row["seconds"] = round(time.time() - begin, 3)
        results.append(row)
        print(f"{row['result']:11} {row['seconds']:7.2f} s  {name}" + (f": {row['why']}" if "why" in row else ""), flush=True)
        write(args, results)
    counts = write(args, results)
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['unsupported'] + counts['skipped']} skipped")
    sys.exit(1 if counts["failed"] else 0)


def write(args, results):
    counts = {k: sum(r["result"] == k for r in results) for k in ("passed", "failed", "unsupported", "skipped")}
    with open(args.out, "w") as file:
        json.dump(dict(gpu=torch.cuda.get_device_name(), repeats=args.repeats, counts=counts, checks=results), file, indent=1)
    return counts


if __name__ == "__main__":
    main()
