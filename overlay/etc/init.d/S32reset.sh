#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A factory reset that was asked for: by the command (/data/reset/request, also one that a power cut
# has interrupted), by a file on the first partition, or by a button that is held now. Only a node that
# has one of these starts a program for it (thicket.device.factory_reset).
#
# Read by rcS, whose say it uses, after S20data.sh and S30boot.sh: nothing has used /data yet.

reset_asked=''
for reset_file in /data/reset/request /data/reset/button /boot/factory-reset /boot/factory-reset.txt; do
	[ ! -e "$reset_file" ] || reset_asked=1
done
if [ -n "$reset_asked" ]; then
	if reset_said=$(/usr/lib/thicket/factory-reset 2>&1); then
		[ -z "$reset_said" ] || say 5 "$reset_said"
	else
		say 3 "$reset_said"
	fi
fi
