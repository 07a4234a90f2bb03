#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Which slot this start is of, and whether it is the right one: a slot on trial, one that fails again and
# again, one that the firmware should have been told to try (thicket.device.boot_record). It may restart
# the node at once, for the trial of the other slot.
#
# First of all that could fail, so that nothing that does fail goes uncounted.
#
# Read by rcS, after S05slots.sh, whose $card_disk it uses.
# shellcheck disable=SC2154

if [ -n "$card_disk" ]; then
	if boot_said=$(/usr/lib/thicket/boot-slots begin 2>&1); then
		[ -z "$boot_said" ] || say 4 "$boot_said"
	else
		say 3 "$boot_said"
	fi
fi
