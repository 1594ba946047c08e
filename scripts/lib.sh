# Sourced by the other scripts: messages, numbered steps with a log, stamps.
# shellcheck shell=bash
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
state=$root/.fulmen
goal=${goal:-$(basename "$0" .sh)} # the make target, named in messages
cd "$root"
mkdir -p "$state/stamps" "$state/logs"
log=$state/logs/$goal.log
error_file=$state/logs/$goal.error

[ -t 1 ] && [ "${TERM:-dumb}" != dumb ] && on_terminal=1 || on_terminal=
may_ask() { [ -n "$on_terminal" ] && [ -t 0 ] && [ -z "${CI:-}" ]; }
need_sudo() { [ "$(id -u)" != 0 ]; }

# One line: what is missing, the command that mends it. How to resume is added here.
die() {
  printf 'make %s: %s Then run "make %s" again: it goes on where it stopped.\n' "$goal" "$1" "$goal" >&2
  exit 1
}
# The same from inside a step, whose own output goes to the log.
fail() {
  printf '%s\n' "$1" >"$error_file"
  exit 1
}

only_one_at_a_time() {
  exec 9>"$state/lock"
  flock -n 9 || die "another make of this folder is setting up. Wait until it is done."
}

# Times are in tenths of a second.
now() { local t=${EPOCHREALTIME/[.,]/}; echo "${t%?????}"; }
seconds() { printf '%d.%d s' $(($1 / 10)) $(($1 % 10)); }

# A stamp holds the key of a step's inputs; a step whose key stands there is done.
stamped() { [ "$(cat "$state/stamps/${1/\//-}" 2>/dev/null)" = "$2" ]; }
stamp() { printf '%s\n' "$2" >"$state/stamps/${1/\//-}.new" && mv "$state/stamps/${1/\//-}.new" "$state/stamps/${1/\//-}"; }
hash_text() { sha256sum | cut -c1-32; }

step_number=0 step_count=0 step_child=
stop_child() {
  [ -z "$step_child" ] || kill -TERM -- "-$step_child" 2>/dev/null || true
  [ -z "$on_terminal" ] || printf '\n'
  exit 130
}
trap stop_child INT TERM

# step LABEL PROGRESS COMMAND...: runs the command with its output in the log. PROGRESS is a function that prints
# how far it is in a few words, or `true`.
step() {
  local label=$1 progress=$2 start status=0
  shift 2
  step_number=$((step_number + 1))
  local head
  head=$(printf '[%d/%d] %-38s' "$step_number" "$step_count" "$label")
  start=$(now)
  printf '\n==== %s: %s\n' "$(date '+%F %T')" "$label" >>"$log"
  step_log_start=$(wc -c <"$log")
  rm -f "$error_file"
  set -m # a process group of its own, so that an interrupt ends all of it
  (set +m; "$@") >>"$log" 2>&1 9>&- </dev/null &
  step_child=$!
  set +m
  if [ -n "$on_terminal" ]; then
    while kill -0 "$step_child" 2>/dev/null; do
      printf '\r\033[K%s %s  %s' "$head" "$(seconds $(($(now) - start)))" "$($progress)"
      sleep 0.2
    done
  fi
  wait "$step_child" || status=$?
  step_child=
  [ -z "$on_terminal" ] || printf '\r\033[K'
  if [ "$status" = 0 ]; then
    printf '%s %s\n' "$head" "$(seconds $(($(now) - start)))"
    return
  fi
  printf '%s failed after %s\n' "$head" "$(seconds $(($(now) - start)))"
  if [ -n "${CI:-}" ]; then
    printf -- '---- the end of %s\n' "${log#"$root"/}"
    tail -n 80 "$log"
    printf -- '----\n'
  fi
  local reason
  reason=$(cat "$error_file" 2>/dev/null || true)
  [ -n "$reason" ] || reason="\"$label\" failed; the reason is at the end of the log."
  die "$reason Log: ${log#"$root"/}."
}

# "[57/120]" of the last line that ninja wrote.
ninja_progress() {
  tail -c "+$((step_log_start + 1))" "$log" | tail -c 4000 | grep -oE '^\[[0-9]+/[0-9]+\]' | tail -n 1 || true
}

free_mb() { df -Pm "$1" | awk 'NR == 2 {print $4}'; }
