# Sourced after lib.sh: the steps that bring what the project needs. Each can be run again at any time.
# shellcheck shell=bash disable=SC2154

# ---- platform
check_platform() {
  local id=unknown version=0 major
  [ "$(uname -s)" = Linux ] || die "$(uname -s) is not supported: Fulmen needs Linux. Use a Linux machine or WSL2."
  [ "$(uname -m)" = x86_64 ] || echo "note: $(uname -m): builds from source, not tested"
  local release=${FULMEN_OS_RELEASE:-/etc/os-release} # another file: for the tests
  if [ -r "$release" ]; then
    id=$(sed -n 's/^ID=//p' "$release" | tr -d \"\')
    version=$(sed -n 's/^VERSION_ID=//p' "$release" | tr -d \"\')
    id=${id:-unknown} version=${version:-99}
  fi
  major=${version%%.*}
  case $id in
    debian) [ "$major" -ge 12 ] && has_apt=1 ;;
    ubuntu) [ "$major" -ge 24 ] && has_apt=1 ;;
    *) command -v apt-get >/dev/null && command -v dpkg-query >/dev/null && has_apt=1 ;;
  esac
  [ -n "$has_apt" ] || distribution="$id $version"
}
has_apt='' distribution=''

check_disk() { # MB
  local free
  free=$(free_mb "$state")
  [ "$free" -ge "$1" ] || die "the disk is full: $1 MB are needed in $root, $free MB are free. Free some space: \"make clean\" drops the build folders."
}

# ---- Debian packages: scripts/packages/NAME.txt lists them, one a line
package_list() { printf 'scripts/packages/%s.txt\n' "$@" | xargs cat | sed 's/#.*//' | tr -s ' \n' '\n' | sed '/^$/d' | sort -u; }

# The names that are not installed. g++ and the like count as there when the command is: another source may have brought it.
missing_packages() {
  local name
  local installed
  installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' 2>/dev/null | sed -n 's/^ii *//p')
  for name in $(package_list "$@"); do
    grep -qxF "$name" <<<"$installed" && continue
    case $name in
      g++ | cmake | pkg-config | unzip) command -v "$name" >/dev/null && continue ;;
      ninja-build) command -v ninja >/dev/null && continue ;;
      python3) command -v python3 >/dev/null && continue ;;
      python3-venv) python3 -c 'import venv, ensurepip' 2>/dev/null && continue ;;
      python3-dev) python3 -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null && continue ;;
      python3-pip) python_with_pip >/dev/null && continue ;;
    esac
    echo "$name"
  done
}
packages_key() { { package_list "$@"; stat -c '%s %Y' /var/lib/dpkg/status 2>/dev/null || true; } | hash_text; }

download_mb() { # of packages that are to be installed; empty where apt's lists are empty
  # shellcheck disable=SC2068
  { apt-get install --print-uris -qq --no-install-recommends $@ 2>/dev/null || true; } |
    awk '$3 ~ /^[0-9]+$/ {sum += $3} END {if (NR) printf "%d", sum / 1e6 + 1}'
}

apt() { # never asks, never waits long for another apt
  local run=()
  need_sudo && run=(sudo -n)
  "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -o Dpkg::Use-Pty=0 -o Acquire::Retries=2 \
    -o "DPkg::Lock::Timeout=${CI:+12}0" -o Acquire::http::Timeout=20 "$@"
}
# Whether one of apt's sources (or the proxy before them) takes a connection. apt itself would try for minutes.
archive_reachable() {
  local sites proxy site host port
  proxy=$(apt-config dump Acquire::http::Proxy --format %v 2>/dev/null)
  sites=${proxy:-${http_proxy:-$(apt-get indextargets --format '$(SITE)' 2>/dev/null | sort -u)}}
  for site in $sites; do
    [[ $site =~ ^https?://([^/:@]+@)?([^/:]+)(:([0-9]+))? ]] || return 0 # a file or a disc
    host=${BASH_REMATCH[2]} port=${BASH_REMATCH[4]}
    [ -n "$port" ] || { [[ $site == https* ]] && port=443 || port=80; }
    timeout 2 bash -c ": </dev/tcp/$host/$port" 2>/dev/null && return 0
  done
  [ -z "$sites" ]
}
apt_reason() {
  local text
  text=$(tail -n 60 "$log")
  if grep -qE 'Could not get lock|is another process using it|Unable to acquire the dpkg' <<<"$text"; then
    fail "the package database is locked by another program. Wait until that one ends (\"ps -C apt,apt-get,dpkg,unattended-upgr\" shows it)."
  elif grep -qiE "No space left|enough free space" <<<"$text"; then
    fail "no space left for packages. Free some: \"apt-get clean\" as root helps."
  elif grep -qE 'dpkg was interrupted' <<<"$text"; then
    fail "an earlier installation of packages was interrupted. Mend it as root: \"dpkg --configure -a\"."
  elif grep -qE 'Temporary failure resolving|Could not resolve|Unable to connect|Failed to fetch' <<<"$text"; then
    fail "the Debian archive cannot be reached. Check the network."
  fi
  fail "apt-get failed. Try as root: \"apt-get update && apt-get install --no-install-recommends $*\"."
}
install_packages() {
  archive_reachable || fail "offline: the Debian archive cannot be reached, and these packages are missing: $*. Connect to the network."
  apt install --no-install-recommends "$@" && return
  tail -n 5 "$log" | grep -qE 'lock|dpkg was interrupted|enough free space' && apt_reason "$@"
  # Package lists that are missing or old: fetch them, then once more.
  apt update || true # one source of many may be down; install decides
  apt install --no-install-recommends "$@" || apt_reason "$@"
}

# The step as a whole. Asking is done before, by the caller.
ensure_packages() { # STAMP LIST...
  local name=$1 missing
  shift
  stamped "$name" "$(packages_key "$@")" && { skip "packages"; return; }
  if [ -z "$has_apt" ]; then
    local lacking
    lacking=$(scripts/missing_tools.sh) ||
      die "packages are installed for you on Debian 12 and Ubuntu 24.04 or newer only, this is $distribution. Missing: $lacking. Install what Debian calls: $(package_list "$@" | tr '\n' ' ')with the package manager of this system."
    skip "packages (of $distribution)"
    return
  fi
  missing=$(missing_packages "$@" | tr '\n' ' ')
  if [ -n "$missing" ]; then
    if need_sudo && ! sudo -n true 2>/dev/null; then
      die "packages are missing and this user may not install them. As root: \"apt-get install --no-install-recommends ${missing% }\"."
    fi
    # shellcheck disable=SC2086
    step "packages ($(wc -w <<<"$missing"))" true install_packages $missing
  else
    skip "packages"
  fi
  stamp "$name" "$(packages_key "$@")"
}
skip() {
  step_number=$((step_number + 1))
  printf '[%d/%d] %-38s there already\n' "$step_number" "$step_count" "$1"
}

# ---- downloads: scripts/downloads.json says what, from which wheel, with which hashes
python_with_pip() {
  local python
  for python in python3 /usr/bin/python3; do
    command -v "$python" >/dev/null && "$python" -m pip --version >/dev/null 2>&1 && { echo "$python"; return; }
  done
  return 1
}
fetched_files() { sed -nE 's/.*"to": "([^"]+)".*/\1/p' scripts/downloads.json | grep -E "^$1/" || true; }
fetch_key() {
  { cat scripts/downloads.json; fetched_files "$1" | sed "s|^|$state/|" | xargs -r -d '\n' stat -c '%n %s %Y' 2>/dev/null; } | hash_text
}
fetch() {
  local python
  python=$(python_with_pip) || fail "python3 has no pip. As root: \"apt-get install python3-pip\"."
  ERROR_FILE=$error_file "$python" scripts/fetch.py "$1"
}
fetch_progress() {
  local got
  got=$(du -sm "$state/download" 2>/dev/null | cut -f1)
  [ "${got:-0}" = 0 ] || printf '%s MB' "$got"
}
ensure_fetched() { # NAME LABEL
  stamped "$1" "$(fetch_key "$1")" && { skip "$2"; return; }
  step "$2" fetch_progress fetch "$1"
  stamp "$1" "$(fetch_key "$1")"
}

# ---- build
build_jobs() { # a compiler takes up to about 1.2 GB
  local cores memory
  cores=$(nproc)
  memory=$(awk '/MemAvailable/ {print int($2 / 1200000)}' /proc/meminfo)
  [ "$memory" -ge 1 ] || memory=1
  echo $((cores < memory ? cores : memory))
}
configure() { # FOLDER ARGUMENTS...; only when the arguments changed: ninja runs cmake itself when a list of files did
  local folder=$1 key
  shift
  key=$(echo "$root $*" | hash_text)
  [ -f "$folder/build.ninja" ] && [ "$(cat "$folder/.configured" 2>/dev/null)" = "$key" ] && return
  if [ -f "$folder/CMakeCache.txt" ] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$folder/CMakeCache.txt"; then
    rm -rf "$folder" # the source folder was moved
  fi
  cmake -S . -B "$folder" -G Ninja "$@" && echo "$key" >"$folder/.configured"
}
first_error() {
  local line
  line=$(tail -c "+$((step_log_start + 1))" "$log" | grep -m 1 -E '(fatal error|error:|undefined reference|Killed|No space left|CMake Error)' | cut -c1-160 || true)
  case $line in
    *"No space left"*) fail "the disk is full. Free some space: \"make clean\" drops the build folders." ;;
    *Killed*) fail "the compiler ran out of memory. Run with fewer jobs: \"FULMEN_JOBS=1 make $goal\"." ;;
  esac
  fail "the build failed${line:+: $line}. \"make clean\" starts it afresh."
}
build() { # FOLDER "TARGETS" ARGUMENTS...
  local folder=$1 targets=$2
  shift 2
  configure "$folder" "$@" || first_error
  # shellcheck disable=SC2086
  ninja -C "$folder" -j "${FULMEN_JOBS:-$(build_jobs)}" $targets || first_error
}

# What the demo, the benchmarks and `make install` run.
release_arguments="-DCMAKE_BUILD_TYPE=Release -DFULMEN_APPS=ON -DFULMEN_TESTS=OFF -DFULMEN_EMULATOR=OFF -DFULMEN_BENCH=OFF"
ensure_release() {
  # shellcheck disable=SC2086
  step "build of the library and the command" ninja_progress build build/release "fulmen fulmen_command" $release_arguments
  stamp build-release "$(sources_key)"
}
sources_key() { # names, sizes and times: reading all of them would cost more than the demo's start
  { echo "$root $release_arguments"; find CMakeLists.txt include src kernels apps cmake -type f -printf '%p %s %T@\n' | sort; } | hash_text
}
