#!/usr/bin/env bash
# make format: clang-format over all C++ sources. CHECK=1 changes nothing and fails where something would change.
goal="format"
. "$(dirname "$0")/lib.sh"
command -v clang-format-19 >/dev/null || die "clang-format-19 is missing. As root: \"apt-get install clang-format-19\"."
find include src kernels apps emulator tests bench examples python -type f \
  \( -name '*.h' -o -name '*.hpp' -o -name '*.cpp' -o -name '*.c' -o -name '*.cuh' \) -print0 |
  xargs -0 -r clang-format-19 ${CHECK:+--dry-run -Werror} -i
