#!/usr/bin/env bash
# library_test.sh SOURCE_DIR LIBRARY: what the shared library exports, needs and weighs.
set -euo pipefail
"$1/scripts/check_symbols.sh" "$2"
foreign=$(objdump -p "$2" | awk '$1 == "NEEDED" {print $2}' | grep -vE '^(libhwy|libstdc\+\+|libm|libgcc_s|libc|libdl|libpthread|ld-linux-x86-64)\.so' || true)
[ -z "$foreign" ] || { echo "$2 needs $foreign: only Highway, the C++ and the C library are allowed" >&2; exit 1; }
objdump -p "$2" | grep -q TEXTREL && { echo "$2 has text relocations" >&2; exit 1; }
size=$(stat -Lc %s "$2")
[ "$size" -lt 8000000 ] || { echo "$2 has $size bytes, more than 8 MB" >&2; exit 1; }
