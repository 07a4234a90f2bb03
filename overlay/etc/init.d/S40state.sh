#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# How the run before ended, and the time that was saved last.
#
# /data/thicket/run says "running"; after an orderly end (rcK) "stopped", and "overdue" where the node
# restarted itself as it was not well in time (boot-slots late). It is overwritten in its
# place, which works on a full disk. What it said at power-on is in /run/thicket/last-run; the daemon
# makes the history of restarts of it (docs/node.md) and waits until "running" is on the disk.
# The saved time is the time of change of /data/thicket/clock.
#
# Read by rcS, whose say and clock_not_before it uses.

[ -d /data/thicket ] || mkdir -p /data/thicket 2>/dev/null
state=none
if [ -f /data/thicket/run ]; then
	state=''
	read -r state 2>/dev/null </data/thicket/run
	case $state in
	running | stopped | overdue) ;;
	*) state=damaged ;;
	esac
fi
echo "$state" >/run/thicket/last-run
[ -d /data/thicket/run ] || echo running 2>/dev/null 1<>/data/thicket/run

# What operators brought, and no command uses any more.
[ ! -e /data/thicket/incoming ] || rm -rf /data/thicket/incoming

# The log of the run before, as far as it was kept (rcK, and the daemon).
if [ -f /data/log/system.txt ]; then
	mv -f /data/log/system.txt /data/log/system-before.txt 2>/dev/null
fi

clock_not_before /data/thicket/clock
