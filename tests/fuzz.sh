#!/bin/bash
# fuzz.sh SECONDS [TARGET...] : runs each fuzz target of tests/fuzz that long under libFuzzer, from its seeds and from
# what earlier runs found (target/fuzz/corpus). It ends at the first finding, which is then in tests/fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/fuzz"

seconds=${1:?usage: fuzz.sh SECONDS [TARGET...]}
shift
targets=${*:-$(awk -F'"' '/^path/ {gsub(/fuzz_targets\/|\.rs/, "", $2); print $2}' Cargo.toml)}
command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz --version 0.13.2
# Instrumentation is an unstable flag; this lets the one toolchain take it.
export RUSTC_BOOTSTRAP=1
for target in $targets; do
  feature=$(awk -F'"' -v name="$target" '$1 ~ /^name/ {found = $2 == name} found && $1 ~ /^required/ {print $2}' Cargo.toml)
  [ -n "$feature" ] || { echo "fuzz.sh: there is no target $target" >&2; exit 2; }
  corpus=../../target/fuzz/corpus/$target
  mkdir -p "$corpus"
  echo "== $target, $seconds s"
  # No unsafe code is reached, so no address sanitizer is needed.
  cargo fuzz run --fuzz-dir . --target-dir ../../target/fuzz --sanitizer none --features "$feature" "$target" \
    "$corpus" "seeds/$target" -- -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=1024 -timeout=20 \
    -print_final_stats=1 2>&1 | grep -vE '^#|NEW_FUNC|^Loaded' || exit 1
done
