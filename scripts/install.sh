#!/usr/bin/env bash
# make install PREFIX=...: library, headers, command. What was written is remembered for make uninstall.
goal="install"
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/setup.sh"

prefix=${PREFIX:-/usr/local}
[[ $prefix == /* ]] || prefix=$PWD/$prefix
writable() {
  local folder=$1
  until [ -e "$folder" ]; do folder=$(dirname "$folder"); done
  [ -w "$folder" ]
}
writable "$prefix" || die "$prefix is not writable. Use a folder of your own (\"make install PREFIX=\$HOME/.local\") or run as root."
only_one_at_a_time
: >"$log"
check_platform
step_count=3
ensure_packages packages-build build
ensure_release
install_files() {
  cmake --install build/release --prefix "$prefix"
  cp build/release/install_manifest.txt "$state/installed.txt"
}
step "install into $prefix" true install_files
[ "$(id -u)" != 0 ] || [ "$prefix" != /usr/local ] || ldconfig
