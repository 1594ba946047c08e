#!/usr/bin/env bash
# make clean: drops what was built. The model and NVRTC stay; "rm -r .fulmen" drops them too.
goal="clean"
. "$(dirname "$0")/lib.sh"
only_one_at_a_time
rm -rf build dist .fulmen/download .fulmen/stamps .fulmen/full .fulmen/logs
echo "build, dist, logs and stamps removed; downloads are kept in .fulmen ($(du -sm "$state" | cut -f1) MB)"
