#!/bin/bash
# base.sh SUITE DIR [PACKAGE...] : makes the machine of a Debian suite, unless DIR has the one that this very script
# makes: its cloud kernel (vmlinuz) and an ext4 root file system (root.img) with that suite's userland, and with
# the packages named. Packages are unpacked, not configured: there is no systemd in it.
set -euo pipefail

suite=$1 dir=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
made_by=$( (cat "$here/base.sh" "$here/handover"; echo "$@") | sha256sum)
[ "$(cat "$dir/made-by" 2>/dev/null || true)" != "$made_by" ] || exit 0

# What the tests call, and what loads the kernel's modules (liblzma5: trixie's are compressed).
packages=base-files,dash,busybox-static,coreutils,findutils,grep,sed,util-linux,mount,procps,kmod,liblzma5
packages+=,iproute2,nftables,e2fsprogs,curl,perl-base,gcc,libc6-dev,libgcc-s1,linux-image-cloud-amd64
for package in "$@"; do packages+=,$package; done

# site LABEL : the address of this machine's own mirror.
site() {
  apt-get indextargets --format '$(LABEL) $(SITE)' 'Created-By: Packages' | sed -n "s/^$1 //p" | sed -n 1p
}

echo "virtual machine: unpacking $suite" >&2
mkdir -p "$dir"
work=$(mktemp -d "$dir/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
sources=("deb $(site Debian) $suite main")
[ -z "$(site Debian-Security)" ] || sources+=("deb $(site Debian-Security) $suite-security main")
mmdebstrap --quiet --mode=root --variant=extract --aptopt='APT::Install-Recommends "false"' \
  --include="$packages" "$suite" "$root" "${sources[@]}"
kernel=$(basename "$root"/boot/vmlinuz-*)
chroot "$root" depmod "${kernel#vmlinuz-}"
ln -s gcc "$root/usr/bin/cc"
mkdir -p "$root/mnt"
install -m 755 "$here/handover" "$root/init"
printf 'root:x:0:0:root:/root:/bin/sh\n' > "$root/etc/passwd"
printf '127.0.0.1 localhost\n' > "$root/etc/hosts"
rm -rf "$root"/usr/share/{doc,man,locale} "$root"/var/{cache,lib}/apt

# Sparse, so that a machine has room for the disks of many containers. Nothing outlives a test run.
mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=1 -m 0 -d "$root" "$work/root.img" 12G >/dev/null
cp "$root/boot/$kernel" "$work/vmlinuz"
rm -f "$dir/made-by"
mv "$work/root.img" "$work/vmlinuz" "$dir/"
echo "$made_by" > "$dir/made-by"
