#!/bin/bash
# leaks.sh : fails when a test left something on this host. A running demo (named "mogok") is not a leak.
set -euo pipefail

left=$(
  { grep -E 'mogok-(test|kernel|bench)' /proc/mounts || true; } | cut -c1-160
  find /sys/fs/cgroup -maxdepth 4 -type d -name 'mogok-[tkb]*' 2>/dev/null || true
  for file in /sys/block/loop*/loop/backing_file; do
    [ -e "$file" ] && { grep -E 'mogok-(test|kernel|bench)|/tmp/' "$file" || true; }
  done
  { nft list tables 2>/dev/null || true; } | grep -E 'mogok-(test|kernel|bench)' || true
  { ip -oneline link show || true; } | grep -E 'mogok-(test|kernel|bench)' || true
  for process in /proc/[0-9]*; do
    { tr '\0' ' ' < "$process/cmdline" 2>/dev/null || true; } | grep -E 'mogok-(test|kernel|bench)' || true
  done
  find /tmp -maxdepth 1 -name 'mogok-*' 2>/dev/null || true
)
[ -z "$left" ] || { echo "left behind by the tests:"; echo "$left"; exit 1; }
echo "nothing left behind"
