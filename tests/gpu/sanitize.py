#!/usr/bin/env python3
"""Runs a small cover of check.py under compute-sanitizer's memcheck and racecheck and counts what the tool reports.

The counts are read from the tool's own summary lines; a run without one (it was cut short, or the tool is missing) is a
failure, never a clean one.

usage: sanitize.py --lib libfulmen.so --header fulmen.h -o FOLDER [--budget SECONDS]
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
# A kernel of each kind: attention of few and of many rows, plan, one of each op, a captured graph.
COVER = ["attention mixed full", "attention decode 16", "attention faults*: negative length", "append_kv NHD bf16 page 16",
         "rope_append*bf16 65 tokens", "rope bf16 interleaved 0 rotary 64", "rms_norm 37x576 bf16", "act_and_mul silu bf16",
         "merge_states bf16", "linear gated 16 rows bf16", "sample*peaked joint 3x128256", "softmax*65x1000 f32"]
SUMMARY = {"memcheck": r"ERROR SUMMARY: (\d+) error", "racecheck": r"RACECHECK SUMMARY: (\d+) hazard"}


def run(tool, args):
    out = os.path.join(args.out, f"{tool}-checks.json")
    if os.path.exists(out):
        os.remove(out)
    command = ["compute-sanitizer", "--tool", tool, "--print-limit", "20", sys.executable, os.path.join(HERE, "check.py"),
               "--lib", args.lib, "--header", args.header, "-o", out, "--repeats", "1"]
    for pattern in COVER:
        command += ["--only", pattern]
    begin = time.time()
    with open(os.path.join(args.out, f"{tool}.log"), "w") as log:
        try:
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=args.budget or None).returncode
        except subprocess.TimeoutExpired as error:
            status = f"timed out after {error.timeout:.0f} seconds"
        except OSError as error:
            status = error.strerror
    with open(log.name) as log:
        text = log.read()
    found = re.findall(SUMMARY[tool], text)
    counts = json.load(open(out))["counts"] if os.path.exists(out) else {"passed": 0, "failed": 0, "unsupported": 0, "skipped": 0}
    row = {"suite": f"compute-sanitizer {tool}", "passed": counts["passed"], "failed": counts["failed"],
           "skipped": counts["unsupported"] + counts["skipped"], "reports": int(found[-1]) if found else None,
           "summary": text[text.rfind("========="):].strip().split("\n")[0][:200], "status": status, "seconds": round(time.time() - begin, 1)}
    row["clean"] = row["reports"] == 0 and row["failed"] == 0 and row["passed"] > 0
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", required=True)
    parser.add_argument("--header", required=True)
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--budget", type=float, default=0, help="seconds for each of the two tools")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    rows = []
    for tool in SUMMARY:
        rows.append(run(tool, args))
        print(json.dumps(rows[-1]), flush=True)
        with open(os.path.join(args.out, "sanitize.json"), "w") as file:
            json.dump(rows, file, indent=1)
    sys.exit(0 if all(row["clean"] for row in rows) else 1)


if __name__ == "__main__":
    main()
