#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A start that is not well a quarter of an hour after the start scripts (the daemon says when it is) is
# restarted, and counted as failed: from a trial that is the way back, else another slot may do better.
# The kernel's parameter thicket.late=SECONDS is for tests, which do not wait that long.
#
# Read by rcS, whose $thicket_late it uses, after S05slots.sh, whose $card_disk it uses.
# shellcheck disable=SC2154

case $thicket_late in
'' | *[!0-9]* | ??????*) thicket_late=900 ;;
esac

if [ -n "$card_disk" ]; then
	(
		sleep "$thicket_late"
		exec /usr/lib/thicket/boot-slots late
	) &
fi
