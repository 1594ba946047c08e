#!/usr/bin/env bash
# test_python.sh BUILD_DIR: builds the wheel, installs it into a folder of its own and runs tests/python against that.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(realpath "$1")
scripts/wheel.sh "$build" "$build/wheel"
rm -rf "$build/site"
.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --target "$build/site" "$build"/wheel/fulmen-*.whl
cd tests/python
PYTHONPATH=$build/site PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=$build/hypothesis \
  ../../.venv/bin/python -m pytest -q -rs -p no:cacheprovider \
  ${FULMEN_RESULTS:+--junitxml=$FULMEN_RESULTS/test_python_package.xml}
