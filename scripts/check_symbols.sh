#!/usr/bin/env bash
# check_symbols.sh FILE...: fails where a file needs more than glibc 2.34 or libstdc++ 3.4.29, looks for libraries elsewhere
# than beside itself, or where libfulmen exports anything but fulmen_*.
set -euo pipefail
newer_than() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | tail -n 1)" != "$2" ]; }
status=0
for file in "$@"; do
  [ -f "$file" ] || continue
  while read -r kind version; do
    limit=2.34
    [ "$kind" = GLIBCXX ] && limit=3.4.29
    if newer_than "$version" "$limit"; then
      echo "$file needs ${kind}_$version, newer than ${kind}_$limit: $(objdump -T "$file" | grep -F "${kind}_$version" | awk '{print $NF}' | head -n 3 | tr '\n' ' ')" >&2
      status=1
    fi
  done < <(objdump -T "$file" | grep -oE '(GLIBC|GLIBCXX)_[0-9.]+' | sort -u | tr _ ' ')
  path=$(objdump -p "$file" | awk '$1 == "RUNPATH" || $1 == "RPATH" {print $2}')
  while read -r folder; do # an empty one means the current folder
    case $folder in
      '$ORIGIN' | '$ORIGIN'/*) ;;
      *) echo "$file looks for libraries in '$folder' (of '$path'); another machine knows \$ORIGIN only" >&2; status=1 ;;
    esac
  done < <([ -z "$path" ] || echo "$path:" | tr : '\n' | sed '$d')
  case $file in
    *libfulmen.so*)
      foreign=$(nm -D --defined-only "$file" | awk '$2 != "A" {print $3}' | grep -v '^fulmen_' | head -n 5 || true)
      [ -z "$foreign" ] || { echo "$file exports foreign symbols: $foreign" >&2; status=1; } ;;
  esac
done
exit $status
