#!/usr/bin/env bash
# test_wheel.sh [WHEEL]: tests/python against one wheel, on every Python from 3.10 up that the machine has: those of the path and of
# pyenv. Each gets a folder of its own under build/wheel-tests with numpy, pytest and hypothesis.
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=${1:-$(ls dist/fulmen-*.whl)}
wheel=$(realpath "$wheel") folder=$PWD/build/wheel-tests
mkdir -p "$folder"
declare -A seen=()
status=0
for python in /usr/bin/python3.1[0-9] /usr/local/bin/python3.1[0-9] "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[0-9].*/bin/python; do
  [ -x "$python" ] || continue
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  [ -z "${seen[$version]:-}" ] || continue
  seen[$version]=1
  venv=$folder/$version
  [ -x "$venv/bin/pytest" ] || { "$python" -m venv "$venv" && "$venv/bin/pip" install -q --disable-pip-version-check numpy pytest hypothesis; }
  "$venv/bin/pip" install -q --disable-pip-version-check --no-deps --force-reinstall "$wheel"
  line=$(cd tests/python && PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=$folder/hypothesis \
    "$venv/bin/python" -m pytest -q -rs -p no:cacheprovider 2>&1 | tee "$folder/$version.log" | tail -n 1) || status=1
  echo "Python $version: $line"
  grep '^SKIPPED' "$folder/$version.log" || true
done
[ ${#seen[@]} -gt 0 ] || { echo "test_wheel.sh: no Python from 3.10 up was found" >&2; exit 1; }
exit "$status"
