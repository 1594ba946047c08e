#!/usr/bin/env bash
# gpu-check: all checks and the benchmark on this machine's GPU, from this folder alone.
#   gpu-check [--budget SECONDS] [--only PATTERN] [--resume] [--out DIR] [--skip-bench] [--skip-sanitize]
# Parts: checks of every op, the emulator's recorded instructions, public faults, compute-sanitizer on a small cover, first-call times,
# benchmark. PATTERN is the beginning of the name of a check or a case, or has the shell's wildcards; with one the sanitizer
# and the first calls are left out. Everything is written into DIR (default: results) as each case ends, --resume goes on
# where such a folder stops, and at the end all of it stands in DIR/DATE-GPU-COMMIT.json.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$here/results budget=0 only='' resume='' bench=1 sanitize=1
while [ $# -gt 0 ]; do
  case $1 in
    --budget) budget=$2; shift 2 ;;
    --only) only=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --resume) resume=--resume; shift ;;
    --skip-bench) bench=; shift ;;
    --skip-sanitize) sanitize=; shift ;;
    *) echo "gpu-check: unknown option $1" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
export FULMEN_CACHE_DIR=${FULMEN_CACHE_DIR:-$here/cache} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
chmod 700 "$here/cache" 2>/dev/null
where=(--lib "$here/lib/libfulmen.so.1" --header "$here/include/fulmen/fulmen.h")
status=0
# Seconds of the budget for a part of it; 0: no limit.
share() { [ "$budget" = 0 ] && echo 0 || echo $((budget * $1 / 100)); }
first_time() { [ -z "$resume" ] || [ ! -f "$out/$1" ]; }

python3 "$here/tests/gpu/check.py" "${where[@]}" -o "$out/check.json" --only "$only" --budget "$(share 25)" $resume || status=1
if [ -z "$only" ] && first_time mma.json; then
  python3 "$here/tests/gpu/mma_vectors.py" --against "$here/tests/kernels/data" -o "$out/mma.json" || status=1
fi
if [ -z "$only" ] && first_time faults.json; then
  python3 "$here/tests/gpu/public_faults.py" -o "$out/faults.json" || status=1
fi
if [ -z "$only" ] && [ -n "$sanitize" ] && first_time sanitize.json; then
  python3 "$here/tests/gpu/sanitize.py" "${where[@]}" -o "$out" --budget "$(share 12)" || status=1
fi
if [ -n "$bench" ]; then
  if [ -z "$only" ] && first_time first_call.json; then
    python3 "$here/bench/gpu/first_call.py" "${where[@]}" --rounds 1 -o "$out/first_call.json" || status=1
  fi
  python3 "$here/bench/gpu/bench.py" "${where[@]}" -o "$out/bench.json" --commit "$(cat "$here/commit")" --only "$only" \
    --budget "$(share 40)" $resume || status=1
fi
python3 "$here/tests/gpu/result.py" "$out"
exit $status
