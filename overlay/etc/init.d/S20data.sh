#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# /data: the only thing that persists. A card's data partition is first made to reach to the card's
# end, or made again when it is lost. A blank device gets a file system; one that was not left cleanly
# is repaired; one beyond repair is made anew, with its first 4 MiB kept for a look at what happened; a
# write-protected one is used as it is; without any, /data is RAM. /run/thicket/data says in one line
# which of these it was: clean, repaired, created, rebuilt, readonly or ram, and why.
#
# Programs here may take as long as a large or slow card needs; one that makes no progress is killed
# (thicket.device.start_watch), and then the next best way is taken.
#
# On an ordinary boot only cmp, hexdump, e2fsck and mount are started. A power cut at any moment leaves something
# that the next boot continues from.
#
# Read by rcS, whose $thicket_data, $device, say and find_device it uses, after S05slots.sh.
# shellcheck disable=SC2154

data_state() {
	echo "$1 $2" >/run/thicket/data
	case $1 in
	clean) ;;
	created) say 6 "/data created on $device" ;;
	*) say 4 "/data $1: $2" ;;
	esac
}

# See that the data partition exists and reaches to the card's end, give or take 4 MiB (what alignment
# leaves over). sysfs tells, so only a card that needs it costs the start of a program.
data_partition() {
	read -r card_total <"$card_sys/size"
	# An MBR counts sectors with 32 bits.
	[ "$card_total" -le 4294967295 ] || card_total=4294967295
	if [ -n "$card_data" ]; then
		read -r card_start <"$card_data/start"
		read -r card_size <"$card_data/size"
		if [ "$card_start" -ge "$card_root_end" ] &&
			[ $((card_total - card_start - card_size)) -lt 8192 ]; then
			return 0
		fi
	fi
	if card_said=$(/usr/lib/thicket/data-partition "$card_disk" 2>&1); then
		say 6 "data partition: $card_said"
	else
		say 3 "data partition: $card_said"
	fi
	card_data=''
	for card_entry in "$card_sys"/*/partition; do
		read -r card_number <"$card_entry"
		[ "$card_number" != 7 ] || card_partition "${card_entry%/partition}"
	done
}

# $data_sectors: how large the device is.
data_measure() {
	data_sectors=0
	data_sys=$card_data
	[ "$device" = /dev/slots/data ] || data_sys=/sys/class/block/${device##*/}
	[ ! -r "$data_sys/size" ] || read -r data_sectors <"$data_sys/size"
}

data_make() {
	# Blocks of 4 KiB whatever the size: the card's pages are no smaller. Above 1 GiB fewer inodes and
	# a journal of no more than 32 MiB. The tables of inodes (2 GB on a card of 512 GB) are written by
	# the kernel while the node works, a tenth of the time; a power cut only interrupts that.
	data_shape='-i 16384'
	[ "$data_sectors" -lt 2097152 ] || data_shape='-i 65536 -J size=32'
	# Inodes of 256 bytes, whatever the default is: smaller ones have no times after January 2038.
	# shellcheck disable=SC2086 # a list of words
	mke2fs -q -F -t ext4 -b 4096 -I 256 $data_shape -m 1 -L thicket-data \
		-E nodiscard,lazy_itable_init=1 "$device" >/run/thicket/mke2fs.log 2>&1
}

data_mount() {
	mount -t ext4 -o noatime,nosuid,nodev,errors=remount-ro "$device" /data
}

# The file system fills the device: note the device's size, so that a later boot need not look.
data_note_size() {
	[ -d /data/thicket ] || mkdir -p /data/thicket
	echo "$data_sectors" 2>/dev/null >/data/thicket/size
}

# A device that became larger (a card copied to a larger one, a cut in the middle of this): the
# mounted file system is grown, which is safe against cuts.
data_grow() {
	data_known=''
	[ ! -f /data/thicket/size ] || read -r data_known </data/thicket/size
	[ "$data_known" != "$data_sectors" ] || return 0
	if data_said=$(/usr/lib/thicket/data-partition --grow /data "$data_sectors" 2>&1); then
		say 6 "/data grown: $data_said"
		data_note_size
	else
		say 4 "/data could not be grown: $data_said"
	fi
}

# $1: why. Whatever is on the device can be read, and nothing written.
data_readonly() {
	mount -t ext4 -o ro,noload,noatime,nosuid,nodev "$device" /data 2>/dev/null || return 1
	data_state readonly "$1; what was kept can be read, nothing new is kept"
}

# $1: why. Ends with a fresh file system, or in RAM when even that cannot be made.
data_rebuild() {
	dd if="$device" of=/run/thicket/data-head bs=1M count=4 2>/dev/null
	if data_make && data_mount; then
		mkdir -p /data/rescue &&
			gzip -c /run/thicket/data-head >/data/rescue/head.img.gz &&
			sync
		data_note_size
		data_state rebuilt "$1; the first 4 MiB of before are in /data/rescue/head.img.gz"
	else
		data_readonly "$1, and a new file system could not be made on $device" ||
			data_ram "$1, and a new file system could not be made on $device"
	fi
	rm -f /run/thicket/data-head
}

data_ram() {
	mount -t tmpfs -o nosuid,nodev,mode=0755,size=25% data /data
	data_state ram "$1; nothing is kept over a restart"
}

# Whether the device is as large as the file system on it says. A card that was cut off, or says it is
# larger than it is, has one that is not: no repair can bring back what is missing, and some releases
# of e2fsck try for ever. $data_claimed: the size in MiB that the file system should have.
data_fits() {
	data_claimed=0
	# The superblock (struct ext2_super_block) as numbers of 32 bits: 2 is the number of blocks, 7 the
	# logarithm of their size in KiB, 15 begins with the magic number, 25 says whether 85 counts.
	# shellcheck disable=SC2046 # one word per number
	set -- $(hexdump -v -s 1024 -n 340 -e '1/4 "%u "' "$device" 2>/dev/null)
	[ $# -eq 85 ] || return 0
	[ $((${15} & 65535)) -eq 61267 ] && [ "$7" -le 6 ] && [ "$data_sectors" -gt 0 ] || return 0
	data_high=0
	[ $((${25} & 128)) -eq 0 ] || data_high=${85}
	# The high half is believed up to 2^50 blocks, beyond which this shell's numbers end.
	[ "$data_high" -lt 262144 ] || data_high=262143
	data_blocks=$(($2 + data_high * 4294967296))
	data_claimed=$((data_blocks << $7 >> 10))
	[ $((data_blocks << $7)) -le $((data_sectors / 2)) ]
}

# $1: what was stopped. The file system is not written to, as far as it can be read.
data_stopped() {
	data_readonly "$1 made no progress and was stopped" ||
		data_rebuild "$1 made no progress and was stopped"
}

data_check() {
	if ! data_fits; then
		data_rebuild "the device ends at $((data_sectors / 2048)) MiB, inside a file system of $data_claimed MiB"
		return
	fi
	e2fsck -p "$device" >/run/thicket/fsck.log 2>&1
	status=$?
	if [ $status -gt 128 ]; then
		data_stopped "the check (e2fsck -p)"
		return
	fi
	# Exit status of e2fsck(8): a sum of 1 (corrected), 2 (restart wanted, for mounted ones), 4 (errors
	# left), 8 (could not work) and more.
	if [ $status -ge 4 ]; then
		# Not what can be repaired safely: repair what can be repaired at all.
		e2fsck -f -y "$device" >>/run/thicket/fsck.log 2>&1
		status=$?
		if [ $status -gt 128 ]; then
			data_stopped "the repair (e2fsck -f -y)"
			return
		fi
		if [ $status -ge 4 ]; then
			data_rebuild "beyond repair (e2fsck status $status)"
			return
		fi
	fi
	if ! data_mount; then
		data_rebuild "checked but not mountable"
		return
	elif [ $status -ge 1 ]; then
		data_state repaired "e2fsck status $status, see /run/thicket/fsck.log"
	else
		data_state clean ''
	fi
	data_grow
}

card_said=''
if [ "$thicket_data" = /dev/slots/data ] && [ -n "$card_disk" ]; then
	data_partition
fi
data_protected=0
if [ -n "$thicket_data" ] && find_device "$thicket_data"; then
	data_measure
	[ ! -r "$data_sys/ro" ] || read -r data_protected <"$data_sys/ro"
fi

if [ -z "$thicket_data" ]; then
	data_ram "the kernel command line names no thicket.data= device"
elif [ -z "$device" ]; then
	case $thicket_data in
	/dev/slots/*) data_ram "the card has no data partition (${card_said:-the root is not on a card})" ;;
	*) data_ram "$thicket_data was not found within 10 s" ;;
	esac
elif [ "$data_protected" = 1 ]; then
	data_readonly "the device is write-protected" ||
		data_ram "the device is write-protected and holds no file system that can be mounted"
elif cmp -s -n 65536 "$device" /dev/zero; then
	if data_make && data_mount; then
		data_note_size
		data_state created "on a blank device"
	else
		data_ram "no file system could be made on the blank device $device"
	fi
else
	data_check
fi
