#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The format of what the node keeps in /data/thicket: the image reads one, format 1 unless
# /usr/share/thicket/data-format says another number, and the folder's file "format" names its own.
#
# Each format has a folder of its own, so that every image finds what it left. Where /data/thicket has
# another format, /data/thicket.N takes its place: the first time made of the newest older one (a copy
# that is migrated), or empty where there are only newer ones. Nothing of another format is written to:
# a slot that is left on its trial leaves no trace in what the slot before it reads. What a newer image
# kept is removed when an older one is well (thicket.device.data_format).
#
# Read by rcS, whose say it uses, after S20data.sh.

# $1: a folder. Its format, in $format_found.
format_of() {
	format_found=1
	[ ! -f "$1/format" ] || read -r format_found <"$1/format"
	case $format_found in
	'' | *[!0-9]* | ?????*) format_found=1 ;;
	esac
}

format_own=1
[ ! -f /usr/share/thicket/data-format ] || read -r format_own </usr/share/thicket/data-format

# $1: a folder to migrate. Into $format_folder, which appears as a whole or not at all.
format_migrate() {
	if format_said=$(/usr/lib/thicket/migrate-data "$1" "$format_folder" 2>&1); then
		say 5 "state migrated to format $format_own: $format_said"
		return 0
	fi
	say 3 "state of $1 could not be migrated to format $format_own: $format_said"
	return 1
}

format_change() {
	format_folder=/data/thicket.$format_own
	if [ ! -d "$format_folder" ]; then
		format_best=0 format_from=''
		for format_one in /data/thicket /data/thicket.*; do
			[ -d "$format_one" ] || continue
			case $format_one in *.new) continue ;; esac
			format_of "$format_one"
			if [ "$format_found" -lt "$format_own" ] && [ "$format_found" -gt "$format_best" ]; then
				format_best=$format_found format_from=$format_one
			fi
		done
		if [ -z "$format_from" ] || ! format_migrate "$format_from"; then
			mkdir "$format_folder" && echo "$format_own" >"$format_folder/format"
		fi
	fi
	mount -o bind "$format_folder" /data/thicket ||
		say 3 "state of format $format_own cannot be used: $format_folder"
}

if [ -d /data/thicket ]; then
	format_of /data/thicket
	[ "$format_found" = "$format_own" ] || format_change
elif mkdir -p /data/thicket 2>/dev/null && [ "$format_own" != 1 ]; then
	echo "$format_own" 2>/dev/null >/data/thicket/format
fi
