#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Buildroot runs this when the root filesystem and the kernel are made: $1 the directory they are in,
# $2 the board. Makes the card: the root with its hash tree, boot partitions with the command lines
# that name it, and manifest.json, which says what is in it. root.verity and boot.vfat stay for bundles
# (tools/src/firmware/bundle.py).
set -eu

images=$1
board=$2
# Buildroot knows this folder by a link (br2-external/board).
top=$(CDPATH='' cd -P -- "$(dirname -- "$0")/../.." && pwd)
common=$top/board/common
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# shellcheck source=/dev/null
. "$top/board/$board/board.conf"
# What a board adds: board_config_files DIR (the partition that people edit), board_boot_files DIR (both boot
# partitions, beside kernel and command line). Both run with $images and $top.
# shellcheck source=/dev/null
. "$top/board/$board/hooks.sh"

say() { printf '%s: %s\n' "$board" "$*"; }

SIGNATURE=5448434b
ROOT_BYTES=$((128 << 20))

# The root and, behind it, its hash tree (dm-verity). The salt is made of the root itself, so that the
# same root makes the same tree.
cp "$images/rootfs.erofs" "$work/root"
bytes=$(wc -c <"$work/root")
blocks=$(((bytes + 4095) / 4096))
truncate -s $((blocks * 4096)) "$work/root"
salt=$(sha256sum "$work/root" | cut -c1-64)
veritysetup format --no-superblock --hash=sha256 --data-block-size=4096 --hash-block-size=4096 \
	--salt="$salt" --data-blocks=$blocks --hash-offset=$((blocks * 4096)) \
	"$work/root" "$work/root" >"$work/verity"
hash=$(sed -n 's/^Root hash:[[:space:]]*//p' "$work/verity")
case $hash in
*[!0-9a-f]* | '') echo "veritysetup told no root hash" >&2; exit 1 ;;
esac
total=$(wc -c <"$work/root")
if [ "$total" -gt $ROOT_BYTES ]; then
	say "the root and its hash tree take $total bytes, a root slot has $ROOT_BYTES" >&2
	exit 1
fi
mv "$work/root" "$images/root.verity"

# $1: A or B; $2: its root's partition. Corruption is a restart, which is a way back; wrong data is not.
cmdline() {
	device=PARTUUID=$SIGNATURE-0$2
	printf '%s ' \
		console=serial0,115200 quiet panic=10 \
		root=/dev/dm-0 rootfstype=erofs ro rootwait "dm-mod.waitfor=$device" \
		"dm-mod.create=\"root,,,ro,0 $((blocks * 8)) verity 1 $device $device 4096 4096 $blocks $blocks sha256 $hash $salt 1 panic_on_corruption\"" \
		reserve_mem=256K:4096:oops ramoops.mem_name=oops ramoops.record_size=65536 \
		ramoops.console_size=0 ramoops.ftrace_size=0 ramoops.pmsg_size=0
	printf '%s\n' "rauc.slot=$1 thicket.slot=$1 thicket.boot=/dev/slots/config thicket.data=/dev/slots/data"
}

root=$work/tree
mkdir -p "$root/config" "$root/boot"
cat >"$root/config/autoboot.txt" <<EOF
[all]
tryboot_a_b=1
boot_partition=2
[tryboot]
boot_partition=3
EOF
# Always one whole sector, so that changing it is writing one sector. Filled up with empty lines: what a
# boot ROM makes of other bytes is not documented.
while [ "$(wc -c <"$root/config/autoboot.txt")" -lt 512 ]; do
	echo >>"$root/config/autoboot.txt"
done
cp "$top/app/src/thicket/thicket.toml" "$common/card/README.txt" "$root/config/"
# Where a device writes about itself, in place: 16 KiB that never move (app/src/thicket, report).
awk 'BEGIN { for (i = 0; i < 256; i++) printf "%62s\r\n", "" }' >"$root/config/report.txt"
board_config_files "$root/config"

cp "$images/$KERNEL_FILE" "$root/boot/"
board_boot_files "$root/boot"
cmdline A 5 >"$root/boot/cmdline-A.txt"
cmdline B 6 >"$root/boot/cmdline-B.txt"
length=$(wc -c <"$root/boot/cmdline-A.txt")
if [ "$(wc -c <"$root/boot/cmdline-B.txt")" != "$length" ]; then
	say "the command lines of the two slots differ in length" >&2
	exit 1
fi
# A boot file system is for either slot until it is put into one, and starts no root before: whoever
# tries has a panic, a restart, and the other slot. As long as what takes its place, which is written
# over it.
line="panic=10 thicket.slot=none thicket.boot-image=$hash"
printf "%-$((length - 1))s\n" "$line" >"$root/boot/cmdline.txt"
# FAT keeps times, and the same card should be the same file.
find "$root" -exec touch -h -d "@${SOURCE_DATE_EPOCH:-0}" {} +

# $1: a configuration of genimage; its images go to $images
generate() {
	genimage --loglevel 1 --rootpath "$root" --tmppath "$work/tmp-$1" --inputpath "$images" \
		--outputpath "$images" --config "$common/$1"
}

generate boot.cfg
at=$(grep -abo -F "$line" "$images/boot.vfat" | cut -d: -f1)
case $at in
*[!0-9]* | '') say "boot.vfat has its command line not once: $at" >&2; exit 1 ;;
esac
for slot in A B; do
	cp --sparse=always "$images/boot.vfat" "$images/boot-$slot.vfat"
	dd if="$root/boot/cmdline-$slot.txt" of="$images/boot-$slot.vfat" bs=4096 seek="$at" \
		oflag=seek_bytes conv=notrunc status=none
	mtype -i "$images/boot-$slot.vfat" ::cmdline.txt | cmp - "$root/boot/cmdline-$slot.txt"
done
generate genimage.cfg
rm "$images/boot-A.vfat" "$images/boot-B.vfat"

size_of() { wc -c <"$1" | tr -d ' '; }
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$top/app/pyproject.toml")
epoch=$(sed -n 's/^epoch = \([0-9]*\)$/\1/p' "$top/app/pyproject.toml")
release=$(ls "${TARGET_DIR:-/nonexistent}/lib/modules" 2>/dev/null || echo unknown)
cat >"$images/manifest.json" <<EOF
{
 "board": "$board",
 "arch": "$ARCH",
 "version": "$version",
 "epoch": $epoch,
 "commit": "${THICKET_COMMIT:-unknown}",
 "kernel": "$release",
 "root_hash": "$hash",
 "slots": {
  "boot_bytes": $(du -sb "$root/boot" | cut -f1),
  "root_bytes": $bytes,
  "verity_bytes": $((total - blocks * 4096)),
  "kernel_bytes": $(size_of "$images/$KERNEL_FILE")
 },
 "card_bytes": $(size_of "$images/card.img")
}
EOF
say "card.img $(($(size_of "$images/card.img") >> 20)) MiB, root $((bytes >> 10)) KiB, kernel $(($(size_of "$images/$KERNEL_FILE") >> 10)) KiB"
