#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A start that is not well a quarter of an hour after the start scripts (the daemon says when it is) is
# restarted, and counted as failed: from a trial that is the way back, else another slot may do better.
#
# Read by rcS, after S05slots.sh, whose $card_disk it uses.
# shellcheck disable=SC2154

if [ -n "$card_disk" ]; then
	(
		sleep 900
		exec /usr/lib/thicket/boot-slots late
	) &
fi
