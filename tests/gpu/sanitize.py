#!/usr/bin/env python3
"""Runs a small cover of check.py under compute-sanitizer's memcheck and racecheck and counts what the tool reports.

The cover is cut into processes that run side by side: the tool's time is the host's, not the GPU's. The counts are read from the tool's own
summary lines; a run without one (it was cut short, or the tool is missing) is a failure, never a clean one.

usage: sanitize.py --lib libfulmen.so --header fulmen.h -o FOLDER [--budget SECONDS]
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
# A kernel of each kind: attention of few and of many rows, plan, one of each op, a captured graph. A process each.
COVER = [["attention mixed full"], ["attention decode 16"], ["attention faults*negative length"],
         ["append_kv NHD bf16 page 16", "rope_append*bf16 65 tokens", "rope bf16 interleaved 0 rotary 64", "linear gated 16 rows bf16"],
         ["rms_norm 37x576 bf16", "act_and_mul silu bf16", "merge_states bf16"], ["sample*peaked joint 3x128256"], ["softmax*65x1000 f32"]]
SUMMARY = {"memcheck": r"ERROR SUMMARY: (\d+) error", "racecheck": r"RACECHECK SUMMARY: (\d+) hazard"}
COUNTS = ("passed", "failed", "unsupported", "skipped")


def run_part(tool, args, number):
    """-> {counts of the checks, reports of the tool or None, its summary, how it ended}."""
    out, log_path = (os.path.join(args.out, f"{tool}-{number}.{kind}") for kind in ("json", "log"))
    if os.path.exists(out):
        os.remove(out)
    command = ["compute-sanitizer", "--tool", tool, "--print-limit", "20", sys.executable, os.path.join(HERE, "check.py"),
               "--lib", args.lib, "--header", args.header, "-o", out, "--repeats", "1"]
    for pattern in COVER[number]:
        command += ["--only", pattern]
    with open(log_path, "w") as log:
        try:
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=args.budget or None).returncode
        except subprocess.TimeoutExpired as error:
            status = f"timed out after {error.timeout:.0f} seconds: {', '.join(COVER[number])}"
        except OSError as error:
            status = error.strerror
    with open(log_path) as log:
        text = log.read()
    found = re.findall(SUMMARY[tool], text)
    counts = json.load(open(out))["counts"] if os.path.exists(out) else dict.fromkeys(COUNTS, 0)
    return {**counts, "reports": int(found[-1]) if found else None, "status": status,
            "summary": text[text.rfind("========="):].strip().split("\n")[0][:200]}


def run(tool, args):
    begin = time.time()
    with ThreadPoolExecutor(len(COVER)) as pool:
        parts = list(pool.map(lambda number: run_part(tool, args, number), range(len(COVER))))
    total = {name: sum(part[name] for part in parts) for name in COUNTS}
    whole = all(part["reports"] is not None and part["passed"] > 0 for part in parts)
    row = {"suite": f"compute-sanitizer {tool}", "passed": total["passed"], "failed": total["failed"],
           "skipped": total["unsupported"] + total["skipped"], "reports": sum(part["reports"] for part in parts) if whole else None,
           "seconds": round(time.time() - begin, 1)}
    odd = [{"checks": COVER[i], "status": part["status"], "summary": part["summary"]} for i, part in enumerate(parts)
           if part["reports"] != 0 or part["status"] != 0]
    if odd:
        row["not_clean"] = odd
    row["clean"] = row["reports"] == 0 and row["failed"] == 0
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", required=True)
    parser.add_argument("--header", required=True)
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--budget", type=float, default=0, help="seconds for each of the two tools; 0: no limit")
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
