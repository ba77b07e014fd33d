#!/bin/bash
# static-shim.sh dev|release DIR [OPTION...] : links the shim statically and puts it into DIR, where the other programs are.
# A static shim loads nothing from the host and keeps its memory small. With musl, where rustup has it or can fetch it: the
# GNU C library asks the processor for its features before main, which takes longer than all else of the shim's
# start on a virtual machine. Its own target directory keeps cargo from building it twice, once each way, at every call.
set -euo pipefail

profile=$1 dir=$2
shift 2
case $profile in
  dev) profile=dev built=debug ;;
  release) profile=shim built=shim ;;
  *) echo "static-shim.sh: $profile is neither dev nor release" >&2; exit 2 ;;
esac
musl=x86_64-unknown-linux-musl
lib=$(rustc --print sysroot)/lib/rustlib/$musl/lib
if ! [ -d "$lib" ] && command -v rustup >/dev/null; then
  timeout 300 rustup --quiet target add $musl || true
fi
if [ -d "$lib" ]; then
  set -- --target $musl "$@"
  built=$musl/$built
else
  echo "static-shim.sh: no target $musl for $(rustc --version): with the GNU C library instead, and each start takes longer" >&2
fi
cargo rustc --quiet -p mogok-shim --bin mogok-shim --profile "$profile" --target-dir target/static "$@" -- \
  -C target-feature=+crt-static
mkdir -p "$dir"
install -m 755 "target/static/$built/mogok-shim" "$dir/mogok-shim.new"
mv -f "$dir/mogok-shim.new" "$dir/mogok-shim"
