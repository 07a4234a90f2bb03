#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Drivers that are modules, above all those of USB radios: for what is there now, so that the daemon
# finds its radio, and by way of init for what appears later. Init starts the listener after rcS; it
# looks at all devices again once it listens, because one may appear between now and then.
#
# Read by rcS.

# shellcheck source=/dev/null
. /usr/lib/thicket/hotplug
load_drivers

# The daemon asks nl80211 for radios, which without cfg80211 does not exist: no radio is an answer, no
# family is not.
[ -d /sys/module/cfg80211 ] || modprobe -q mac80211

# Where the kernel knows USB, devices come and go, and a host controller may appear late itself.
if [ -d /sys/bus/usb ]; then
	echo '::respawn:/usr/lib/thicket/hotplug listen' >>/etc/inittab
	kill -HUP 1
fi
