#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The FAT partition that people edit: read-only at /boot, and its thicket.toml is the node's
# configuration. The copy has the file's name only when it is whole: thicketd tells of a file that is
# gone or cannot be read, and uses the last good one (docs/configuration.md).
#
# Read by rcS, whose $thicket_boot, $device, say and find_device it uses.
# shellcheck disable=SC2154

if [ -n "$thicket_boot" ]; then
	if find_device "$thicket_boot" &&
		mount -t vfat -o ro,nosuid,nodev,noexec,noatime,umask=022 "$device" /boot; then
		if [ -e /boot/thicket.toml ]; then
			if ! { cp /boot/thicket.toml /etc/thicket/thicket.toml.new &&
				mv /etc/thicket/thicket.toml.new /etc/thicket/thicket.toml; }; then
				rm -f /etc/thicket/thicket.toml.new
				say 3 "/boot/thicket.toml could not be copied: the last good configuration is used"
			fi
		fi
	else
		say 3 "/boot: $thicket_boot could not be mounted: the last good configuration is used"
	fi
fi
