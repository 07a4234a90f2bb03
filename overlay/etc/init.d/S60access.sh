#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Ways in for a person, as they were when the daemon last ran with a valid configuration ([access] in
# thicket.toml): SSH for the keys in /data/ssh/authorized_keys, also at wired interfaces with their
# link-local addresses unless /data/ssh/no-cable is there, and root shells on the serial ports
# when /data/thicket/console is there. The daemon corrects both when the configuration says otherwise;
# this is what lets a person in when the daemon cannot start.
#
# Read by rcS, after S50devices.sh whose $serial_terminals, add_line,
# add_shell and tell_init it uses.
# shellcheck disable=SC2154

if [ -s /data/ssh/authorized_keys ] && [ -x /usr/sbin/dropbear ]; then
	mkdir -m 0700 /run/thicket/ssh
	if cp /data/ssh/authorized_keys /run/thicket/ssh/authorized_keys; then
		add_line ssh '::respawn:/usr/lib/thicket/sshd'
		if [ ! -e /data/ssh/no-cable ]; then
			: >/run/thicket/cable
			(exec /usr/lib/thicket/cable up </dev/null >/dev/null 2>&1) &
		fi
	else
		say 3 "SSH: the kept keys cannot be read; it stays closed until the daemon has its configuration"
	fi
fi
if [ -e /data/thicket/console ]; then
	for tty in $serial_terminals; do
		add_shell "$tty" "sh -l"
	done
fi
tell_init
