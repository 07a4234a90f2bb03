#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# /data: the only thing that persists. A blank device gets a file system; one that was not left
# cleanly is repaired; one beyond repair is made anew, with its first 4 MiB kept for a look at what
# happened; without any, /data is RAM. /run/thicket/data says in one line which of these it was:
# clean, repaired, created, rebuilt or ram, and why.
#
# Read by rcS, whose $thicket_data, $device, say and find_device it uses.
# shellcheck disable=SC2154

data_state() {
	echo "$1 $2" >/run/thicket/data
	case $1 in
	clean) ;;
	created) say 6 "/data created on $device" ;;
	*) say 4 "/data $1: $2" ;;
	esac
}

data_make() {
	# Blocks of 4 KiB whatever the size: the card's pages are no smaller. Inodes for files of 16 KiB
	# and more. All tables written now: nothing then works on the disk behind everybody's back.
	mke2fs -q -F -t ext4 -b 4096 -i 16384 -m 1 -L thicket-data \
		-E nodiscard,lazy_itable_init=0 "$device" >/run/thicket/mke2fs.log 2>&1
}

data_mount() {
	mount -t ext4 -o noatime,nosuid,nodev,noinit_itable,errors=remount-ro "$device" /data
}

# $1: why. Ends with a fresh file system, or in RAM when even that cannot be made.
data_rebuild() {
	dd if="$device" of=/run/thicket/data-head bs=1M count=4 2>/dev/null
	if data_make && data_mount; then
		mkdir -p /data/rescue &&
			gzip -c /run/thicket/data-head >/data/rescue/head.img.gz &&
			sync
		data_state rebuilt "$1; the first 4 MiB of before are in /data/rescue/head.img.gz"
	else
		data_ram "$1, and a new file system could not be made on $device"
	fi
	rm -f /run/thicket/data-head
}

data_ram() {
	mount -t tmpfs -o nosuid,nodev,mode=0755,size=25% data /data
	data_state ram "$1; nothing is kept over a restart"
}

data_check() {
	e2fsck -p "$device" >/run/thicket/fsck.log 2>&1
	status=$?
	# Exit status of e2fsck(8): a sum of 1 (corrected), 2 (restart wanted, for mounted ones), 4 (errors
	# left), 8 (could not work) and more.
	if [ $status -ge 4 ]; then
		# Not what can be repaired safely: repair what can be repaired at all.
		timeout 1800 e2fsck -f -y "$device" >>/run/thicket/fsck.log 2>&1
		status=$?
		if [ $status -ge 4 ]; then
			data_rebuild "beyond repair (e2fsck status $status)"
			return
		fi
	fi
	if ! data_mount; then
		data_rebuild "checked but not mountable"
	elif [ $status -ge 1 ]; then
		data_state repaired "e2fsck status $status, see /run/thicket/fsck.log"
	else
		data_state clean ''
	fi
}

if [ -z "$thicket_data" ]; then
	data_ram "the kernel command line names no thicket.data= device"
elif ! find_device "$thicket_data"; then
	data_ram "$thicket_data was not found within 10 s"
elif cmp -s -n 65536 "$device" /dev/zero; then
	if data_make && data_mount; then
		data_state created "on a blank device"
	else
		data_ram "no file system could be made on the blank device $device"
	fi
else
	data_check
fi
