#!/usr/bin/env bash
# gpu-engine-check: the serving engine on this machine's GPU against the CPU, from this folder alone.
#   gpu-engine-check [--model FILE] [--tokens N] [--out DIR]
# Joins the model's pieces, checks its hash, then writes DIR/engine.json (default: results) and prints what
# `fulmen generate --stats` says of a batch, with and without --invariant.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$here/results model=$here/model/model.gguf tokens=48
while [ $# -gt 0 ]; do
  case $1 in
    --model) model=$2; shift 2 ;;
    --tokens) tokens=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    *) echo "gpu-engine-check: unknown option $1" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
if [ ! -f "$model" ] && ls "$model".part-* >/dev/null 2>&1; then
  cat "$model".part-* >"$model.joining"
  wanted=$(cut -d' ' -f1 "$model.sha256") found=$(sha256sum "$model.joining" | cut -d' ' -f1)
  [ "$wanted" = "$found" ] || { echo "gpu-engine-check: $model: expected SHA-256 $wanted, found $found" >&2; exit 1; }
  mv "$model.joining" "$model"
fi
# NVIDIA's libraries may stand in Python packages, where neither Fulmen nor the loader looks.
from_python() {
  python3 - "$1" <<'PY' 2>/dev/null
import glob, site, sys, sysconfig
for folder in [sysconfig.get_path("purelib"), *site.getsitepackages(), site.getusersitepackages()]:
    for found in sorted(glob.glob(f"{folder}/nvidia/**/{sys.argv[1]}", recursive=True)):
        print(found)
        sys.exit()
PY
}
[ -n "${FULMEN_NVRTC:-}" ] || { found=$(from_python 'libnvrtc.so.*[0-9]'); [ -z "$found" ] || export FULMEN_NVRTC=$found; }
[ -n "${FULMEN_CUBLASLT:-}" ] || { found=$(from_python 'libcublasLt.so.*[0-9]'); [ -z "$found" ] || export FULMEN_CUBLASLT=$found; }
export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
if [ -d "$here/cache" ]; then
  chmod 700 "$here/cache" && export FULMEN_CACHE_DIR=${FULMEN_CACHE_DIR:-$here/cache}
fi
status=0
"$here/bin/fulmen-engine-check" "$model" "$tokens" >"$out/engine.json" || status=1
cat "$out/engine.json"
for mode in "" --invariant; do
  echo "fulmen generate --device cuda --stats $mode"
  "$here/bin/fulmen" generate --device cuda --stats --model "$model" --context 1024 --max-tokens 128 --ignore-end $mode \
    -p "The capital of France is" 2>&1 >/dev/null | tee "$out/stats$mode.txt" || status=1
done
exit $status
