#!/usr/bin/env bash
# make test: sets up, builds and runs every test. The last line is "N passed, M failed, K skipped".
goal="test"
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/setup.sh"

folder=build/test
arguments="-DCMAKE_BUILD_TYPE=Release -DFULMEN_APPS=ON -DFULMEN_TESTS=ON -DFULMEN_EMULATOR=$([ -f emulator/CMakeLists.txt ] && echo ON || echo OFF)"
results=$folder/results

only_one_at_a_time
: >"$log"
check_platform
check_disk 4000
step_count=5
ensure_packages packages-test build fetch test
ensure_fetched model "model"
ensure_fetched nvrtc/12 "NVRTC 12.4 of the tests"
ensure_fetched nvrtc/13 "NVRTC 13.0 of the tests"
# shellcheck disable=SC2086
step "build" ninja_progress build "$folder" all $arguments

# GoogleTest counts cases, ctest counts programs: each program leaves its cases in an XML file.
rm -rf "$results"
mkdir -p "$results"
status=0
start=$(now)
FULMEN_RESULTS=$root/$results GTEST_OUTPUT="xml:$root/$results/" GTEST_COLOR=no FULMEN_MODEL="$state/model/smollm2-135m-instruct.gguf" \
  ctest --test-dir "$folder" -j "$(nproc)" --timeout 600 --output-on-failure --no-tests=error \
  --output-junit "$root/$results/ctest.xml" "$@" </dev/null || status=$?
printf 'tests took %s\n' "$(seconds $(($(now) - start)))"
python3 scripts/test_summary.py "$results" || status=1
exit "$status"
