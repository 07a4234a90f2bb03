#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The FAT partition that people edit: read-only at /boot, and its thicket.toml is the node's
# configuration. Without it the image's defaults are.
#
# Read by rcS, whose $thicket_boot, $device, say and find_device it uses.
# shellcheck disable=SC2154

if [ -n "$thicket_boot" ]; then
	if find_device "$thicket_boot" &&
		mount -t vfat -o ro,nosuid,nodev,noexec,noatime,umask=022 "$device" /boot; then
		if [ -e /boot/thicket.toml ]; then
			cp /boot/thicket.toml /etc/thicket/thicket.toml ||
				say 3 "/boot/thicket.toml could not be copied: the defaults are used"
		fi
	else
		say 3 "/boot: $thicket_boot could not be mounted: the default configuration is used"
	fi
fi
