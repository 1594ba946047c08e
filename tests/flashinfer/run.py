#!/usr/bin/env python3
"""Runs FlashInfer's own tests on fulmen.flashinfer and writes one JSON file.

    git clone --depth 1 --branch v0.6.18 https://github.com/flashinfer-ai/flashinfer /tmp/flashinfer
    python tests/flashinfer/run.py --upstream /tmp/flashinfer --out /tmp/results --seconds 180     # a spread sample
    python tests/flashinfer/run.py --upstream /tmp/flashinfer --out /tmp/results --resume          # everything
    python tests/flashinfer/run.py ... --mutant zeros         # a module of zeros: nearly all must fail
    python tests/flashinfer/page.py /tmp/results/results.json # -> docs/flashinfer-compatibility.md

Needs fulmen, torch, numpy, scipy, einops and pytest. --device cpu is a dry run without a GPU.
"""
import argparse
import concurrent.futures
import datetime
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections import Counter

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import cases  # noqa: E402


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", required=True, type=pathlib.Path, help="a checkout of FlashInfer")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of the results")
    parser.add_argument("--files", nargs="*", help="parts of file names; all by default")
    parser.add_argument("--seconds", type=float, help="for everything: a spread sample of the cases; without it all are run")
    parser.add_argument("--per-test", type=int, help="cases of a test function at most")
    parser.add_argument("--jobs", type=int, default=1, help="files at a time")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--mutant", choices=("zeros",))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case-seconds", type=int, default=60, help="a case that takes longer counts as skipped")
    parser.add_argument("--resume", action="store_true", help="leave out cases that --out has already")
    return parser.parse_args()


def run_file(args, name, seconds):
    lines = args.out / (name.replace("/", "-") + ".jsonl")
    config = {"device": args.device, "out": str(lines), "seconds": seconds, "per_test": args.per_test, "seed": args.seed,
              "mutant": args.mutant, "resume": args.resume, "case_seconds": args.case_seconds}
    env = {**os.environ, "FULMEN_FLASHINFER_RUN": json.dumps(config), "PYTHONDONTWRITEBYTECODE": "1",
           "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    # Some cases start processes that import flashinfer: they find fulmen.flashinfer by that name, as under `run -- COMMAND`.
    named = pathlib.Path(importlib.util.find_spec("fulmen").origin).parent / "flashinfer" / "_path"
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), str(named), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=line", "-p", "plugin", "-p", "no:cacheprovider",
               "--import-mode=importlib", "-W", "ignore", f"tests/{name}"]
    log = args.out / (name.replace("/", "-") + ".log")
    limit = None if seconds is None else seconds + 2 * args.case_seconds
    with open(log, "w") as text:
        try:
            subprocess.run(command, cwd=args.upstream.resolve(), env=env, stdout=text, stderr=subprocess.STDOUT, timeout=limit)
        except subprocess.TimeoutExpired:
            text.write("\nstopped: out of time\n")
    return name


def read(path):
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            pass  # cut off
    return found


def summary(args, name):
    ring, compares = cases.FILES[name]
    lines = read(args.out / (name.replace("/", "-") + ".jsonl"))
    head = next((x for x in lines if "collected" in x), {"collected": 0, "left_out": {}})
    by_id = {x["id"]: x for x in lines if "id" in x}  # of a case that ran twice, the last
    tally = Counter(x["outcome"] for x in by_id.values())
    groups = {}
    for x in by_id.values():
        if x["outcome"] != "passed":
            key = x["outcome"] + (f" by {x['by']}" if "by" in x else ""), x["reason"]
            groups.setdefault(key, []).append(x["id"].split("::")[-1])
    if "collected" not in (lines[0] if lines else {}):
        log = (args.out / (name.replace("/", "-") + ".log")).read_text().strip().splitlines()
        groups["failed before any case", log[-1][:160] if log else "nothing was printed"] = ["-"]
    reasons = [{"kind": k, "reason": r, "cases": len(ids), "example": ids[0]} for (k, r), ids in groups.items()]
    compared = [x for x in by_id.values() if x["compared"] and x["outcome"] != "skipped"]
    return {"ring": ring, "compares": compares, "collected": head["collected"], "left_out": head["left_out"],
            "run": tally["passed"] + tally["failed"], "passed": tally["passed"], "failed": tally["failed"],
            "skipped": tally["skipped"], "compared": len(compared),
            "compared_failed": sum(x["outcome"] == "failed" for x in compared),
            "reasons": sorted(reasons, key=lambda r: -r["cases"])}


def machine(args):
    found = {"gpu": "none: a dry run on the CPU"}
    if args.device == "cuda":
        import torch
        found = {"gpu": torch.cuda.get_device_name(0), "cuda": torch.version.cuda}
    version = args.upstream / "version.txt"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    return {**found, "date": datetime.datetime.now().isoformat(timespec="minutes"), "commit": commit or os.environ.get("FULMEN_COMMIT", ""),
            "upstream": version.read_text().strip() if version.exists() else "unknown",
            "sample_seconds": args.seconds, "mutant": args.mutant}


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.seconds and not args.per_test:
        args.per_test = 40
    names = [n for n in cases.FILES if not args.files or any(part in n for part in args.files)]
    names = [n for n in names if (args.upstream / "tests" / n).exists()]
    share = args.seconds * args.jobs / len(names) if args.seconds else None
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for name in pool.map(lambda n: run_file(args, n, share), names):
            s = summary(args, name)
            print(f"{name}: {s['collected']} collected, {s['run']} run, {s['passed']} passed, {s['failed']} failed, "
                  f"{s['skipped']} skipped, {s['compared']} compared", flush=True)
    result = {**machine(args), "files": {n: summary(args, n) for n in cases.FILES
                                         if (args.out / (n.replace("/", "-") + ".jsonl")).exists()}}
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    for ring in (1, 2):
        files = [f for f in result["files"].values() if f["ring"] == ring]
        ran, passed = sum(f["run"] for f in files), sum(f["passed"] for f in files)
        print(f"ring {ring}: {passed} of {ran} passed ({100 * passed / max(ran, 1):.1f}%)")
    compared, failed = (sum(f[k] for f in result["files"].values()) for k in ("compared", "compared_failed"))
    print(f"cases that compare values: {compared}, of which {failed} failed ({100 * failed / max(compared, 1):.1f}%)")


if __name__ == "__main__":
    main()
