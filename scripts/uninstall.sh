#!/usr/bin/env bash
# make uninstall: removes what the last make install wrote, and folders of its own that are empty then.
goal="uninstall"
. "$(dirname "$0")/lib.sh"

[ -f "$state/installed.txt" ] || { echo "nothing was installed from here"; exit 0; }
count=0
while IFS= read -r file || [ -n "$file" ]; do
  [ -e "$file" ] || [ -L "$file" ] || continue
  rm -f "$file" || die "$file could not be removed. Run as the user who installed."
  count=$((count + 1))
  folder=$(dirname "$file")
  while [[ $folder == *fulmen* ]] && rmdir "$folder" 2>/dev/null; do folder=$(dirname "$folder"); done
done <"$state/installed.txt"
rm -f "$state/installed.txt"
echo "removed $count files"
