#!/usr/bin/env bash
# make dist: dist/gpu, a folder that runs on any x86-64 Linux with glibc 2.34, a driver and torch; nothing is built there.
#   lib/        libfulmen and the libraries that it needs beside the system's
#   include/    the C ABI
#   cache/      the machine code of every kernel for sm_90a, made here
#   bench/gpu   benchmark, tests/gpu checks, gpu-check runs them all
# DIST_DIRTY=1 allows a tree with uncommitted changes; the stamp then says so.
set -euo pipefail
cd "$(dirname "$0")/.."
commit=$(git rev-parse --short=12 HEAD)
if [ -n "$(git status --porcelain)" ]; then
  [ "${DIST_DIRTY:-}" = 1 ] || { echo "make dist: the tree has uncommitted changes, and the folder's stamp would lie. Commit first." >&2; exit 1; }
  commit=$commit-dirty
fi
full=dist/full build=build/dist
cmake -S . -B $build -G Ninja -DFULMEN_APPS=ON -DFULMEN_TESTS=OFF -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON '-DCMAKE_INSTALL_RPATH=$ORIGIN/../lib;$ORIGIN' >/dev/null
cmake --build $build --target fulmen fulmen_command fulmen_engine_check -- -j"$(nproc)" | tail -n 1
# Kernels whose sources are the same are taken from the last time: entries are named by what they were made from.
mkdir -p $build/cache && chmod 700 $build/cache
LD_LIBRARY_PATH=$PWD/$build/src $build/apps/fulmen prepare --target sm_90a --cache "$PWD/$build/cache" ${FULMEN_NVRTC:+--nvrtc "$FULMEN_NVRTC"}

out=dist/gpu
rm -rf $out && mkdir -p $out/{lib,include/fulmen,bench,tests}
cp -L $build/src/libfulmen.so.1 $out/lib/
ldd $build/src/libfulmen.so.1 | sed -n 's/.*libhwy[^ ]* => \([^ ]*\).*/\1/p' | xargs -I{} cp -L {} $out/lib/
strip --strip-unneeded $out/lib/*
cp include/fulmen/fulmen.h $out/include/fulmen/
cp -r bench/gpu $out/bench/ && cp -r tests/gpu $out/tests/ && find $out -name __pycache__ -prune -exec rm -rf {} +
# The instructions that the emulator repeats: what the GPU gives now against what is recorded.
mkdir -p $out/tests/kernels/data && cp tests/kernels/data/mma_*.txt $out/tests/kernels/data/
cp tests/kernels/public_faults.cuh tests/kernels/public_faults_test.cpp $out/tests/kernels/
cp -r kernels $out/kernels
cp scripts/gpu_check.sh $out/gpu-check
echo "$commit" >$out/commit
cp -r $build/cache $out/cache
scripts/check_symbols.sh $out/lib/*
du -sh $out | cut -f1

# dist/full: the command and the engine's check, with the model in pieces where there is one.
rm -rf $full && mkdir -p $full/{bin,lib,model}
cp $build/apps/fulmen $build/apps/fulmen-engine-check $full/bin/
cp -L $build/src/libfulmen.so.1 $full/lib/
LD_LIBRARY_PATH=$build/src ldd $full/bin/fulmen | sed -n 's/.*lib\(hwy\|pcre2\|utf8proc\)[^ ]* => \([^ ]*\).*/\2/p' | xargs -I{} cp -L {} $full/lib/
strip --strip-unneeded $full/lib/* $full/bin/*
cp scripts/gpu_engine_check.sh $full/gpu-engine-check
cp -r $out/cache $full/cache
echo "$commit" >$full/commit
model=${FULMEN_MODEL:-.fulmen/model/smollm2-135m-instruct.gguf}
if [ -f "$model" ]; then
  split -b 38M "$model" $full/model/model.gguf.part-
  sha256sum "$model" | cut -d' ' -f1 >$full/model/model.gguf.sha256
else
  echo "make dist: no model at $model, dist/full is without one" >&2
fi
scripts/check_symbols.sh $full/lib/*
du -sh $full | cut -f1
