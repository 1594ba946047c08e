#!/usr/bin/env bash
# Installs the build into a fresh prefix, moves it, and builds the installed examples against it: with find_package
# and with pkg-config. Each must print the means that it promises.
#     install_test.sh BUILD_FOLDER
set -euo pipefail
build=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

expected=$'token 0: 0.000\ntoken 1: 0.500\ntoken 2: 1.000\ntoken 3: 1.500\ntoken 4: 2.000'
check_output() { # LABEL COMMAND...
  local label=$1 output
  shift
  output=$("$@")
  [ "$output" = "$expected" ] || { printf '%s printed:\n%s\nexpected:\n%s\n' "$label" "$output" "$expected"; exit 1; }
  echo "$label: ok"
}

cmake --install "$build" --prefix "$work/first" >"$work/install.log" || { tail "$work/install.log"; exit 1; }
mv "$work/first" "$work/prefix"
prefix=$work/prefix
libdir=$(dirname "$(find "$prefix" -name libfulmen.so)")
if grep -rlF "$build" "$prefix" --include='*.cmake' --include='*.pc'; then
  echo "these files name the build folder"
  exit 1
fi

cmake -S "$prefix/share/fulmen/examples" -B "$work/cmake" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" >"$work/cmake.log" ||
  { cat "$work/cmake.log"; exit 1; }
ninja -C "$work/cmake" >"$work/ninja.log" || { cat "$work/ninja.log"; exit 1; }
check_output "find_package, C" "$work/cmake/attention_c"
check_output "find_package, C++" "$work/cmake/attention_cpp"

export PKG_CONFIG_PATH=$libdir/pkgconfig LD_LIBRARY_PATH=$libdir
read -ra flags <<<"$(pkg-config --cflags --libs fulmen)"
gcc -std=c11 -Wall -Wextra -Wpedantic -Werror "$prefix/share/fulmen/examples/attention.c" -o "$work/c" "${flags[@]}"
g++ -std=c++17 -Wall -Wextra -Wpedantic -Werror "$prefix/share/fulmen/examples/attention.cpp" -o "$work/cpp" "${flags[@]}"
check_output "pkg-config, C" "$work/c"
check_output "pkg-config, C++" "$work/cpp"

# Only the C ABI leaves the library.
foreign=$(nm -D --defined-only "$libdir/libfulmen.so" | awk '$3 !~ /^(fulmen_|FULMEN_)/ {print $3}')
[ -z "$foreign" ] || { printf 'foreign symbols:\n%s\n' "$foreign"; exit 1; }

if [ -x "$prefix/bin/fulmen" ]; then # finds its library beside itself
  env -u LD_LIBRARY_PATH "$prefix/bin/fulmen" --version
  ls "$prefix/share/man/man1/fulmen.1" "$prefix/share/bash-completion/completions/fulmen" >/dev/null
fi
