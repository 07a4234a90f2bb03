#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Programs that only some machines need are given to init where their device exists: shells on the
# terminals that are there, and the simulator's relay.
# Read by rcS.

add_line() {
	echo "$1" >>/etc/inittab
}

for tty in ttyS0 ttyAMA0 ttyAMA10; do
	# A serial port that the driver has a name for but no hardware has type 0 (PORT_UNKNOWN).
	if [ -c /dev/$tty ] && { ! read -r type </sys/class/tty/$tty/type || [ "$type" != 0 ]; }; then
		add_line "$tty::respawn:-/bin/sh"
	fi
done 2>/dev/null

# The channels by which a simulator runs commands. The driver makes all names of /dev/hvc* at once,
# the ports tell how many consoles there really are: those without a name of a program's choice.
hvc=0
for port in /sys/class/virtio-ports/*; do
	[ -e "$port" ] || continue
	name=''
	[ ! -r "$port/name" ] || read -r name <"$port/name"
	case $name in
	'')
		add_line "hvc$hvc::respawn:/bin/sh"
		hvc=$((hvc + 1))
		;;
	esac
done

# A simulated radio: the virtio port of this name exists in the simulator and nowhere else.
for name in /sys/class/virtio-ports/*/name; do
	[ -e "$name" ] || continue
	read -r port <"$name"
	if [ "$port" = thicket.hwsim.0 ]; then
		if modprobe mac80211_hwsim radios=0; then
			add_line '::respawn:/usr/sbin/hwsim-relay thicket.hwsim.0'
		else
			say 3 "no simulated radio: mac80211_hwsim could not be loaded"
		fi
	fi
done

# Init reads its table again once this script has ended.
kill -HUP 1
