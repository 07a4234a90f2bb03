#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Buildroot runs this when all packages and the overlay are in the target directory: $1 the directory,
# $2 the board. Leaves out what no node uses and puts in what only the build knows.
set -eu

target=$1
board=$2
# Buildroot knows this folder by a link (br2-external/board).
top=$(CDPATH='' cd -P -- "$(dirname -- "$0")/../.." && pwd)
# shellcheck source=/dev/null
. "$top/board/$board/board.conf"

# Mount points, and places for what lives in RAM or on /data.
mkdir -p "$target/boot" "$target/data" "$target/etc/thicket"

# Init's scripts are those of the overlay; packages bring some of their own.
for script in "$target"/etc/init.d/*; do
	[ -e "$top/overlay/etc/init.d/${script##*/}" ] || rm -f "$script"
done

# What packages install and no node uses, by patterns from the root; globs are the point.
while read -r pattern; do
	case $pattern in
	'' | '#'* | '? '*) continue ;;
	esac
	# shellcheck disable=SC2086
	(cd "$target" && rm -rf -- $pattern)
done <"$top/board/common/unwanted.txt"

# The names of all libraries that a program or library of the root needs, one on a line.
needed() {
	find "$target" -type f \( -perm -100 -o -name '*.so*' \) -exec readelf -dW {} + 2>/dev/null |
		sed -n 's/.*(NEEDED).*\[\(.*\)\]$/\1/p' | sort -u
}

# Libraries that nothing needs any more. One that went may have been the last to need another. Without
# readelf none would seem to be needed.
readelf --version >/dev/null || exit 1
more=y
while [ -n "$more" ]; do
	more=
	names=$(needed)
	while read -r mark pattern; do
		[ "$mark" = '?' ] || continue
		for library in "$target"/$pattern; do
			[ -e "$library" ] || [ -L "$library" ] || continue
			name=$(readelf -dW "$library" 2>/dev/null |
				sed -n 's/.*(SONAME).*\[\(.*\)\]$/\1/p')
			printf '%s\n' "$names" | grep -qxF -e "${name:-none}" && continue
			rm -f "$library"
			more=y
		done
	done <"$top/board/common/unwanted.txt"
done

# Byte code only. Buildroot compiles and removes what packages install before this script runs.
find "$target/usr/lib" -name '*.py' -path '*/python3*' -delete
find "$target/usr/lib" -depth -name '__pycache__' -exec rm -rf {} +

# What a start of the daemon imports, once more in one file.
python3 "$top/tools/src/firmware/start_archive.py" "$target"

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$top/app/pyproject.toml")
if ! grep -qxF "__version__ = \"$version\"" "$top/app/src/thicket/__init__.py"; then
	echo "app/pyproject.toml has the version $version, app/src/thicket/__init__.py another one" >&2
	exit 1
fi
epoch=$(sed -n 's/^epoch = \([0-9]*\)$/\1/p' "$top/app/pyproject.toml")
commit=${THICKET_COMMIT:-unknown}
cat >"$target/usr/lib/os-release" <<EOF
NAME=Thicket
ID=thicket
PRETTY_NAME="Thicket $version ($board)"
VERSION_ID=$version
VARIANT="$board"
VARIANT_ID=$board
IMAGE_ID=thicket-$board
IMAGE_VERSION=$version
BUILD_ID=$commit
THICKET_EPOCH=$epoch
THICKET_DATE=${SOURCE_DATE_EPOCH:-0}
EOF
ln -snf ../usr/lib/os-release "$target/etc/os-release"

# How it was built, for the person who finds the device in ten years.
mkdir -p "$target/usr/share/thicket"
gzip -9n <"$O/thicket_defconfig" >"$target/usr/share/thicket/defconfig.gz"

# The public authorities, in one file, where OpenSSL looks for it.
mkdir -p "$target/etc/ssl"
ln -snf certs/ca-certificates.crt "$target/etc/ssl/cert.pem"

# Updates: this image's kind of device; slots are named by links that init makes.
mkdir -p "$target/etc/rauc"
sed "s/@COMPATIBLE@/thicket-$board/" "$top/board/common/rauc/system.conf" \
	>"$target/etc/rauc/system.conf"
