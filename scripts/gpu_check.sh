#!/usr/bin/env bash
# gpu-check: all checks and the benchmark on this machine's GPU, from this folder alone.
#   gpu-check [--budget SECONDS] [--only PREFIX] [--resume] [--out DIR] [--skip-bench] [--sanitize]
# Writes check.json and bench.json into DIR (default: results) as each case ends.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$here/results budget=0 only='' resume='' bench=1 sanitize=''
while [ $# -gt 0 ]; do
  case $1 in
    --budget) budget=$2; shift 2 ;;
    --only) only=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --resume) resume=--resume; shift ;;
    --skip-bench) bench=; shift ;;
    --sanitize) sanitize=1; shift ;;
    *) echo "gpu-check: unknown option $1" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
export FULMEN_CACHE_DIR=${FULMEN_CACHE_DIR:-$here/cache} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
chmod 700 "$here/cache" 2>/dev/null
where=(--lib "$here/lib/libfulmen.so.1" --header "$here/include/fulmen/fulmen.h")
half=$budget
[ -z "$bench" ] || half=$((budget / 2))
status=0
python3 "$here/tests/gpu/check.py" "${where[@]}" -o "$out/check.json" --only "$only" --budget "$half" $resume || status=1
if [ -n "$sanitize" ]; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool $tool --error-exitcode 9 --print-limit 5 python3 "$here/tests/gpu/check.py" "${where[@]}" \
      -o "$out/$tool.json" --only "attention mixed" --budget 120 >"$out/$tool.log" 2>&1 || status=1
    tail -n 3 "$out/$tool.log"
  done
fi
if [ -n "$bench" ]; then
  python3 "$here/bench/gpu/bench.py" "${where[@]}" -o "$out/bench.json" --commit "$(cat "$here/commit")" --only "$only" --budget "$half" || status=1
fi
exit $status
