#!/usr/bin/env bash
# make lint: shellcheck, and clang-tidy over src, apps and include; a warning is an error.
# FILES="src/a.cpp ..." looks at these alone.
goal="lint"
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/setup.sh"
only_one_at_a_time
: >"$log"
check_platform
step_count=3
ensure_packages packages-lint build lint
# shellcheck disable=SC2086
step "configure" true configure build/lint $release_arguments -DCMAKE_EXPORT_COMPILE_COMMANDS=ON
lint_scripts() { shellcheck scripts/*.sh .ci/run tests/*/*.sh; }
step "shell scripts" true lint_scripts
files=${FILES:-$(find src apps -name '*.cpp' | sort)}
status=0
# shellcheck disable=SC2086
printf '%s\n' $files | xargs -P "$(build_jobs)" -n 1 clang-tidy-19 -p build/lint --quiet --warnings-as-errors='*' 2>>"$log" || status=$?
[ "$status" = 0 ] || { echo "make lint: clang-tidy found faults, listed above."; exit 1; }
echo "clang-tidy: $(wc -w <<<"$files") files, no warning"
