#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The clock is never before the day the image was built. Boards without a battery start in 1970, when
# no certificate is valid yet. A battery's clock (a Pi 5's, a module's, a PC's) is believed where it
# is later than that. S40state.sh then does the same with the time that was saved last.
#
# Read by rcS, whose say it uses.

# Later than this, in seconds after the build, no saved time is believed: 20 years.
clock_too_late=630720000

# $1: seconds since 1970; $2: whose. Sets the clock forward, unless that is not to be believed.
clock_forward() {
	clock_built=$(date -r /usr/lib/os-release +%s)
	# An image made without times has the year 1970: then 2100 is the limit.
	clock_limit=$((clock_built > 1000000000 ? clock_built + clock_too_late : 4102444800))
	if [ "$1" -gt "$clock_limit" ]; then
		say 4 "clock: the time of $2 is not believed, it is too far in the future"
	elif date -s "@$1" >/dev/null 2>&1; then
		say 6 "clock: set forward to the time of $2"
	else
		say 4 "clock: could not be set to the time of $2"
	fi
}

# $1: a file. Sets the clock forward to the time of its last change; a right clock costs no program.
clock_not_before() {
	[ -e "$1" ] || return 0
	# Its time is now.
	echo >/run/thicket/now
	# shellcheck disable=SC3013 # BusyBox has -nt
	[ "$1" -nt /run/thicket/now ] || return 0
	clock_forward "$(date -r "$1" +%s)" "$1"
}

# $1: the file in which the kernel tells the time of a battery's clock, in seconds since 1970. A dead
# battery's is before the image.
clock_of_battery() {
	clock_wanted=''
	[ ! -r "$1" ] || read -r clock_wanted 2>/dev/null <"$1"
	case $clock_wanted in
	'' | *[!0-9]* | ????????????*) return 0 ;;
	esac
	if [ "$clock_wanted" -gt "$(date +%s)" ]; then
		clock_forward "$clock_wanted" "the battery's clock"
	fi
}

clock_not_before /usr/lib/os-release
clock_of_battery /sys/class/rtc/rtc0/since_epoch
