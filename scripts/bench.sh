#!/usr/bin/env bash
# make bench: builds the command and the benchmarks and prints a line per case. ARGS="-o FILE" keeps the result.
goal="bench"
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/setup.sh"
only_one_at_a_time
: >"$log"
check_platform
step_count=3
build_bench() {
  cmake -S . -B build/bench -G Ninja -DFULMEN_BENCH=ON -DFULMEN_APPS=ON -DFULMEN_TESTS=OFF -DCMAKE_BUILD_TYPE=Release
  cmake --build build/bench
}
ensure_packages packages-demo build fetch
ensure_fetched model "model"
step "build of the benchmarks" ninja_progress build_bench
exec 9>&-
# shellcheck disable=SC2086
exec python3 scripts/cpu_results.py build/bench ${ARGS:-}
