#!/usr/bin/env python3
"""Runs the CPU benchmarks of a build and writes one result file in the form of docs/cpu-results/.

usage: cpu_results.py BUILD_DIR [-o RESULT.json] [--threads N]
The build must have FULMEN_BENCH and FULMEN_APPS on. Without -o the rows are only printed.
"""
import argparse
import datetime
import json
import os
import subprocess

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("build")
parser.add_argument("-o", "--out")
parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
args = parser.parse_args()


def json_lines(command):
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def rounded(row):
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def show(row):
    bar = "" if row.get("bar") is None else f"  (bar {row['bar']})"
    ratio = "" if row.get("ratio") is None else f"{row['ratio']:8.3f}"
    print(f"{row['op']:<22} {row['case']:<44} {row['us']:>12.1f} us {ratio}{bar}", flush=True)


cases = []
for part in ("engine", "ops"):
    result = json.loads(subprocess.run([f"{args.build}/apps/fulmen", "bench", "--part", part, "--json", "--threads", str(args.threads)],
                                       capture_output=True, text=True, check=True).stdout)
    for row in map(rounded, result.pop("cases")):
        cases.append(row)
        show(row)
for row in json_lines([f"{args.build}/bench/bench_attention", str(args.threads)]):
    if row.get("bar") == 0:
        row["bar"] = None
    cases.append(row)
    show(row)
if args.out:
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {"cpu": result["cpu"], "threads": args.threads, "date": datetime.date.today().isoformat(), "commit": commit,
              "read_gbps": round(result["read_gbps"], 1), "load_at_end": round(os.getloadavg()[0], 1), "cases": cases}
    with open(args.out, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
