#!/usr/bin/env bash
# make demo: sets up what the demo needs, builds it and runs it. A second run goes straight to the demo.
goal=demo
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/setup.sh"

folder=build/release
command=$folder/apps/fulmen
model=$state/model/smollm2-135m-instruct.gguf
disk_mb=1500
lists=(build fetch)

ready() {
  [ -x "$command" ] && stamped model "$(fetch_key model)" && stamped build-release "$(sources_key)"
}

opening_screen() {
  local missing=$1 mb text
  echo "Fulmen demo: a small language model answers six chat requests on this machine."
  echo
  if [ -n "$missing" ]; then
    # shellcheck disable=SC2086
    mb=$(download_mb $missing)
    text="$(wc -w <<<"$missing") Debian packages${mb:+, $mb MB to download}: ${missing% }"
    fold -s -w 62 <<<"$text" | sed '1s/^/  installs   /; 2,$s/^/             /; s/ *$//'
  else
    echo "  installs   nothing: all Debian packages are there"
  fi
  [ -f "$model" ] || echo "  downloads  the model SmolLM2-135M-Instruct, 93 MB"
  echo "  writes     .fulmen (model, logs) and $folder in this folder, nothing elsewhere"
  if [ -n "$missing" ] && need_sudo; then
    echo "  sudo       for apt-get alone"
  else
    echo "  sudo       not needed"
  fi
  echo
}

ask_for_sudo() { # once, and only where somebody can answer
  local answer
  [ -n "$1" ] && [ -n "$has_apt" ] && need_sudo || return 0
  sudo -n true 2>/dev/null && ! may_ask && return
  command -v sudo >/dev/null || die "packages are missing and there is no sudo. As root: \"apt-get install --no-install-recommends ${1% }\"."
  may_ask || return 0 # the step says what to do
  read -r -p "Install the packages with sudo? [Y/n] " answer
  case $answer in
    "" | [Yy]*) sudo -v || die "sudo was refused. As root: \"apt-get install --no-install-recommends ${1% }\"." ;;
    *) die "nothing was installed. By hand, as root: \"apt-get install --no-install-recommends ${1% }\"." ;;
  esac
  echo
}

if ! ready; then
  only_one_at_a_time
  : >"$log"
  check_platform
  check_disk "$disk_mb"
  missing=
  [ -z "$has_apt" ] || missing=$(missing_packages "${lists[@]}" | tr '\n' ' ')
  opening_screen "$missing"
  ask_for_sudo "$missing"
  step_count=3
  ensure_packages packages-demo "${lists[@]}"
  ensure_fetched model "model"
  ensure_release
  exec 9>&-
  echo
fi
exec "$command" demo --model "$model" "$@"
