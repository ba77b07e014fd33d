#!/bin/bash
# static-probe.sh DIR : links the probe statically and puts it into DIR under a name that cargo does
# not write to. It runs in images that hold nothing else.
set -euo pipefail

cargo rustc --quiet -p mogok-probe --bin mogok-probe --target-dir target/static -- -C target-feature=+crt-static
install -m 755 target/static/debug/mogok-probe "$1/mogok-probe-static.new"
mv -f "$1/mogok-probe-static.new" "$1/mogok-probe-static"
