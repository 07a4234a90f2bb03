#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Drivers that are modules, above all those of USB radios: for what is plugged in now, and by way of
# init for what is plugged in later. The kernel knows the names (modalias); nothing is started where
# every device has its driver already.
#
# Read by rcS.

aliases=''
for device in /sys/bus/usb/devices/* /sys/bus/pci/devices/* /sys/bus/sdio/devices/* \
	/sys/bus/platform/devices/*; do
	if [ -r "$device/modalias" ] && [ ! -e "$device/driver" ]; then
		read -r alias <"$device/modalias"
		aliases="$aliases $alias"
	fi
done
if [ -n "$aliases" ]; then
	# shellcheck disable=SC2086 # one word per device
	modprobe -abq $aliases
fi

# The daemon asks nl80211 for radios, which without cfg80211 does not exist: no radio is an answer, no
# family is not.
[ -d /sys/module/cfg80211 ] || modprobe -q mac80211

# USB comes and goes; the other buses do not on a node.
for bus in /sys/bus/usb/devices/usb*; do
	[ -e "$bus" ] || continue
	echo '::respawn:/sbin/uevent /usr/lib/thicket/hotplug' >>/etc/inittab
	kill -HUP 1
	break
done
