#!/usr/bin/env bash
# make test-full: hours. One shard after the other; a shard that passed is not run again until a source changes, so an
# interrupted run goes on where it stopped. SHARDS="sanitize-address fuzz" runs these alone; SECONDS_EACH bounds a fuzzer.
goal="test-full"
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/setup.sh"

seconds_each=${SECONDS_EACH:-300}
all_shards="plain sample-rows-1 sample-rows-2 sample-rows-3 sample-rows-4 seeds-1 seeds-2 seeds-3 emulator-1 emulator-2
  mutants-1 mutants-2 mutants-3 mutants-4 mutants-5 mutants-6 mutants-7 mutants-8 targets cache sanitize-address sanitize-thread fuzz lint"
shards=${SHARDS:-$all_shards}
mkdir -p "$state/full"

everything_key() { find CMakeLists.txt Makefile include src kernels apps cmake emulator tests scripts -type f -printf '%p %s %T@\n' 2>/dev/null | sort | hash_text; }

run_ctest() { # FOLDER ARGUMENTS...
  local folder=$1
  shift
  FULMEN_MODEL="$state/model/smollm2-135m-instruct.gguf" ctest --test-dir "$folder" -j "$(nproc)" --timeout 1800 --output-on-failure --no-tests=error "$@" ||
    fail "tests failed; the log has their output."
}

shard_plain() {
  build build/test all -DCMAKE_BUILD_TYPE=Release -DFULMEN_APPS=ON -DFULMEN_TESTS=ON -DFULMEN_EMULATOR=ON
  FULMEN_TEST_FULL=1 run_ctest build/test
}
shard_sample_rows() { # a quarter of a million rows of 256 words and a thousand of 128,256: the same words on the CPU and in the emulator
  shard_build_plain
  FULMEN_SAMPLE_ROWS=250000 FULMEN_TEST_SEED=$1 build/test/tests/test_kernels_sample_rows || fail "a word differs; the log has the row."
}
shard_seeds() { # every run of rapidcheck and of the emulator's scheduler with a seed of its own
  shard_build_plain
  local seed
  for seed in 1 2 3 4 5; do
    seed=$(($1 * 1000 + seed))
    echo "seed $seed"
    FULMEN_TEST_FULL=1 FULMEN_TEST_SEED=$seed RC_PARAMS="seed=$seed max_success=300" run_ctest build/test -R '^(unit|ops|kernels|apps)\.'
  done
}
shard_build_plain() { build build/test all -DCMAKE_BUILD_TYPE=Release -DFULMEN_APPS=ON -DFULMEN_TESTS=ON -DFULMEN_EMULATOR=ON; }
shard_emulator() { # every case of every kernel, 50 orders of warps each: the kernels of attention, and the others
  shard_build_plain
  local part=attend_sm80
  [ "$1" = 1 ] || part=!attend_sm80
  build/test/apps/fulmen-emulate --seeds 50 "$part" || fail "a kernel is wrong with one of 50 seeds; the log has the report."
}
shard_mutants() { # an eighth of all mutants of all kernels
  shard_build_plain
  build/test/tests/test_mutants --shard $(($1 - 1))/8 || fail "mutants live that aren't listed; the log names them."
}
shard_targets() { # NVRTC for every other target; the log has registers, spills, shared memory and compile time of each kernel
  shard_build_plain
  FULMEN_TEST_TARGETS="sm_86 sm_89 sm_90 sm_100 sm_120" build/test/tests/test_jit_shipped || fail "a kernel isn't fit for a target; the log names it."
}
shard_cache() { # the kernel cache under kill -9 (a thousand times a run), full disks, other owners: ten runs
  shard_build_plain
  build/test/tests/test_jit_cache --gtest_repeat=10 --gtest_break_on_failure=0 || fail "the kernel cache was damaged; the log has the test."
}
# The emulator has its own use for the thread sanitizer's hooks, so sanitizer builds leave it out.
shard_sanitize() { # address: undefined behaviour as well
  local folder=build/$1 checks=$1
  [ "$1" = thread ] || checks=address,undefined
  build "$folder" all -DCMAKE_BUILD_TYPE=Release -DFULMEN_APPS=ON -DFULMEN_TESTS=ON -DFULMEN_EMULATOR=OFF "-DFULMEN_SANITIZE=$checks"
  ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1:die_after_fork=0 \
    run_ctest "$folder" -E '^(packaging|docs|python)\.|^jit\.shipped$'  # the last: hours of NVRTC, whose code isn't instrumented
}
shard_fuzz() { # every target of tests/fuzz, from its corpus
  local name targets=()
  for name in tests/fuzz/*_fuzz.cpp; do
    name=$(basename "$name" _fuzz.cpp)
    targets+=("fuzz_$name")
  done
  build build/fuzz "${targets[*]}" -DCMAKE_C_COMPILER=clang-19 -DCMAKE_CXX_COMPILER=clang++-19 -DCMAKE_BUILD_TYPE=Release \
    -DFULMEN_APPS=ON -DFULMEN_TESTS=ON -DFULMEN_FUZZ=ON -DFULMEN_SANITIZE=fuzzer-no-link,address,undefined
  for name in "${targets[@]}"; do
    mkdir -p "$state/full/$name" # what this run finds; the corpus of the tree is read only
    echo "$name, $seconds_each s"
    "build/fuzz/tests/$name" -max_total_time="$seconds_each" -rss_limit_mb=2048 -print_final_stats=1 \
      -artifact_prefix="$state/full/$name-" "$state/full/$name" "tests/fuzz/corpus/${name#fuzz_}" ||
      fail "$name found a fault; its input is in .fulmen/full."
  done
}
shard_lint() { scripts/lint.sh; }

run_shard() {
  case $1 in
    seeds-*) shard_seeds "${1#seeds-}" ;;
    mutants-*) shard_mutants "${1#mutants-}" ;;
    sample-rows-*) shard_sample_rows "${1#sample-rows-}" ;;
    emulator-*) shard_emulator "${1#emulator-}" ;;
    sanitize-*) shard_sanitize "${1#sanitize-}" ;;
    *) "shard_$1" ;;
  esac
}

only_one_at_a_time
: >"$log"
check_platform
check_disk 8000
step_count=$((4 + $(wc -w <<<"$shards")))
ensure_packages packages-full build fetch test lint fuzz
ensure_fetched model "model"
ensure_fetched nvrtc/12 "NVRTC 12.4 of the tests"
ensure_fetched nvrtc/13 "NVRTC 13.0 of the tests"
exec 9>&-
key=$(everything_key)
failed=
for shard in $shards; do
  stamped "full-$shard" "$key" && { skip "$shard"; continue; }
  # In a subshell: a shard that fails must not keep the others from running.
  if (step "$shard" ninja_progress run_shard "$shard"); then stamp "full-$shard" "$key"; else failed+=" $shard"; fi
  step_number=$((step_number + 1))
done
[ -z "$failed" ] || { echo "make test-full: failed:$failed. Log: ${log#"$root"/}."; exit 1; }
echo "all shards passed"
