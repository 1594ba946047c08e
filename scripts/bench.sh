#!/usr/bin/env bash
# make bench: builds the command and runs `fulmen bench`. ARGS="--json file" and the like are passed on.
goal="bench"
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/setup.sh"
only_one_at_a_time
: >"$log"
check_platform
step_count=3
ensure_packages packages-demo build fetch
ensure_fetched model "model"
ensure_release
exec 9>&-
# shellcheck disable=SC2086
exec build/release/apps/fulmen bench ${ARGS:-}
