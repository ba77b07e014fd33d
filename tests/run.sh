#!/bin/bash
# run.sh : every test, fast ones first. A test that had to skip is a failure here.
set -euo pipefail
cd "$(dirname "$0")/.."

log=target/test.log
mkdir -p target
: > "$log"
run() {
  local status=0
  echo "== $*"
  "$@" 2>&1 | tee -a "$log" | grep -E --line-buffered '^(test |test result|machine |error|warning|failures:|thread|SKIP|---- )|panicked|assertion|Running' || status=${PIPESTATUS[0]}
  [ "$status" = 0 ] || { tail -n 200 "$log"; failures; echo "FAILED: $*"; exit 1; }
}
# Last of all, so that who sees only the end of a long log sees what failed and why.
failures() {
  echo "== what failed"
  grep -E -A 3 '^test .* \.\.\. (FAILED|ignored|no verdict|ended)|panicked at' "$log" |
    grep -vE '^test .* \.\.\. ok|^note: |^--$' | cut -c 1-600 | tail -n 60 || true
}
export RUST_BACKTRACE=0
# First, because it leaves an agent with fail points where the next build puts the one without.
tests/static-shim.sh dev target/debug/failpoints --features failpoints
run cargo test -p mogok-agent --features failpoints --test node faults -- --show-output
run cargo test --workspace --exclude mogok-tests -- --show-output
run cargo test -p mogok-tests -- --show-output
if grep -q '^SKIP' "$log"; then
  echo "skipped tests, none expected:"
  grep '^SKIP' "$log" | sort | uniq -c
  exit 1
fi
# On Debian's kernels with a unified cgroup tree.
run cargo run --quiet -p mogok-tests --bin mogok-vm -- "$MOGOK_ASSETS"
tests/leaks.sh
awk '/^test result/ {passed += $4; failed += $6} END {print passed " passed, " failed " failed"}' "$log"
