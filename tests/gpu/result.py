#!/usr/bin/env python3
"""Joins what one gpu-check run left in its folder into one result file in the form of docs/gpu-results.

usage: result.py FOLDER -> FOLDER/DATE-GPU-COMMIT.json
"""
import json
import os
import sys


def load(folder, name):
    path = os.path.join(folder, name)
    return json.load(open(path)) if os.path.exists(path) else None


def suite_of_checks(check):
    row = {"suite": "tests/gpu/check.py", **{k: check["counts"][k] for k in ("passed", "failed")},
           "skipped": check["counts"]["unsupported"] + check["counts"]["skipped"], "repeats": check.get("repeats")}
    bad = [{"check": c["check"], "why": c.get("why", "")} for c in check["checks"] if c["result"] == "failed"]
    unsupported = sorted({c.get("why", "") for c in check["checks"] if c["result"] == "unsupported"})
    if bad:
        row["failures"] = bad
    if unsupported:
        row["unsupported"] = unsupported
    return row


def main():
    folder = sys.argv[1]
    result = load(folder, "bench.json") or {"gpu": "unknown", "date": "unknown", "commit": "unknown", "cases": []}
    check, first = load(folder, "check.json"), load(folder, "first_call.json")
    tests = [suite_of_checks(check)] if check else []
    tests += load(folder, "sanitize.json") or []
    tests += [row for row in [load(folder, "mma.json"), load(folder, "faults.json")] if row]
    result["tests"] = tests
    for part in (first, load(folder, "model.json")):
        if part:
            result["cases"] += part["cases"]
            result["sources"] = result.get("sources") or part.get("sources", {})
    gpu = result["gpu"].replace("NVIDIA ", "").split(" ")[0]
    path = os.path.join(folder, f"{result['date']}-{gpu}-{result['commit']}.json")
    with open(path, "w") as file:
        json.dump(result, file, indent=1)
    print(path)


if __name__ == "__main__":
    main()
