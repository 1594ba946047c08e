#!/usr/bin/env bash
# make test-torch: what needs torch, tests/torch, and tests/python on torch's tensors: with Debian's python3-torch on the CPU, or
# with FULMEN_PYTHON=FILE, a Python that has torch (transformers, gguf, a GPU are used where they are there). Every skip is named;
# the last line counts.
goal="test-torch"
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/setup.sh"

folder=build/test-torch
only_one_at_a_time
: >"$log"
check_platform
check_disk 1500
if [ -n "${FULMEN_PYTHON:-}" ]; then
  step_count=1
else
  step_count=2
  ensure_packages packages-torch build test torch
fi
python=${FULMEN_PYTHON:-/usr/bin/python3}
"$python" -c 'import torch, pytest' 2>/dev/null || die "$python has no torch or no pytest. Install Debian's python3-torch and python3-pytest, or set FULMEN_PYTHON to a Python that has both."

# shellcheck disable=SC2317
build_package() {
  cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFULMEN_APPS=OFF -DFULMEN_TESTS=OFF
  cmake --build "$folder" --target fulmen
  scripts/wheel.sh "$folder" "$folder/wheel"
  rm -rf "$folder/site"
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --target "$folder/site" "$folder"/wheel/fulmen-*.whl
}
step "build" true build_package
model=$state/model/smollm2-135m-instruct.gguf
[ -f "$model" ] && export FULMEN_MODEL=${FULMEN_MODEL:-$model}

status=0
cd tests/torch
if [ $# = 0 ]; then
  set -- .
  if "$python" -c 'import hypothesis' 2>/dev/null; then
    set -- . ../python/test_ops.py ../python/test_attention.py ../python/test_lifetimes.py
  else
    echo "left out: tests/python on torch's tensors (no hypothesis)"
  fi
fi
FULMEN_TEST_DEVICE=$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "torch")')
export FULMEN_TEST_DEVICE
PYTHONPATH=$root/$folder/site PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 \
  "$python" -m pytest -q -rs -p no:cacheprovider --junitxml="$root/$folder/results.xml" "$@" || status=$?
"$python" - "$root/$folder/results.xml" <<'P'
import sys
import xml.etree.ElementTree as ElementTree

suite = ElementTree.parse(sys.argv[1]).getroot().find("testsuite")
total, failed, errors, skipped = (int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped"))
print(f"{total - failed - errors - skipped} passed, {failed + errors} failed, {skipped} skipped")
P
exit "$status"
