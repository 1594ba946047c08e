#!/usr/bin/env bash
# wheel.sh [BUILD_DIR OUT_DIR]: makes the virtual environment .venv and the wheel of the library that BUILD_DIR holds.
# Without arguments it builds the library first and writes into dist/. Fails where scripts/check_symbols.sh finds fault.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# = 0 ]; then
  cmake -S . -B build/dist -G Ninja -DFULMEN_APPS=OFF -DFULMEN_TESTS=OFF >/dev/null
  cmake --build build/dist --target fulmen | tail -n 1
  set -- build/dist dist
fi
build=$(realpath "$1") out=$(realpath -m "$2")
key=$(sha256sum python/requirements-test.txt | cut -c1-32)
if [ "$(cat .venv/key 2>/dev/null)" != "$key" ]; then
  rm -rf .venv
  python3 -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check -r python/requirements-test.txt ||
    { echo "wheel: the Python packages of python/requirements-test.txt could not be installed; check the network" >&2; exit 1; }
  echo "$key" >.venv/key
fi
work=$build/python # the wheel is built from a copy, so that the tree stays as it is
rm -rf "$work" && mkdir -p "$work" "$out"
cp -r python/. "$work/"
rm -rf "$work"/build "$work"/fulmen/*.so* "$out"/fulmen-*.whl
FULMEN_SOURCE_DIR=$PWD FULMEN_BUILD_DIR=$build .venv/bin/python -m pip wheel -q --disable-pip-version-check \
  --no-build-isolation --no-deps -w "$out" "$work"
.venv/bin/python -m zipfile -e "$out"/fulmen-*.whl "$work/unpacked"
scripts/check_symbols.sh "$work"/unpacked/fulmen/*.so*
ls "$out"/fulmen-*.whl
