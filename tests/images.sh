#!/bin/bash
# images.sh BIN ASSETS : makes base images and the gem index under ASSETS unless they are there.
set -euo pipefail

bin=$1 assets=$2
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$assets"
# The unprivileged parts of the platform read the gem index.
chmod 755 "$assets"
for recipe in ruby ruby-build; do
  "$bin/mogok-image" build "$root/images/recipes/$recipe" --store "$assets/store" --if-missing
done
"$bin/mogok-image" gem-index --out "$assets/gem-index"
