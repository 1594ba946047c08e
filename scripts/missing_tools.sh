#!/usr/bin/env bash
# Prints what the build lacks on a system whose package names are not known; exit status 1 when anything is.
set -euo pipefail
missing=()
for tool in g++ cmake ninja pkg-config python3; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
for module in libhwy libpcre2-8 libutf8proc; do
  pkg-config --exists "$module" 2>/dev/null || missing+=("$module")
done
if command -v g++ >/dev/null; then
  for header in fmt/format.h xxhash.h nlohmann/json.hpp CLI/CLI.hpp; do
    echo "#include <$header>" | g++ -std=c++20 -E -x c++ - >/dev/null 2>&1 || missing+=("$header")
  done
fi
echo "${missing[*]}"
[ ${#missing[@]} = 0 ]
