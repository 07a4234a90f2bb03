#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The card that the root lies on, /dev/slots/card, and its partitions by what they are for: config,
# boot-a, boot-b, root-a, root-b and data. Whatever the kernel calls the card (mmcblk0, sda, vda), everything
# after this uses these names. Where the root is no partition of a card, nothing is made.
#
# Read by rcS. Sets $card_disk (a device) and $card_sys, empty without a card; $card_data, where sysfs
# has the data partition, empty without one; and $card_root_end, the sector where slot B's root ends.
# shellcheck disable=SC2034

card_disk='' card_sys='' card_data='' card_root_end=0

# $1: a partition's directory in sysfs. Makes its link and notes what others want to know of it.
card_partition() {
	card_name=${1##*/}
	read -r card_number <"$1/partition"
	case $card_number in
	1) card_slot=config ;;
	2) card_slot=boot-a ;;
	3) card_slot=boot-b ;;
	5) card_slot=root-a ;;
	6)
		card_slot=root-b
		read -r card_start <"$1/start"
		read -r card_size <"$1/size"
		card_root_end=$((card_start + card_size))
		;;
	7)
		card_slot=data
		card_data=$1
		;;
	*) return 0 ;;
	esac
	ln -snf "/dev/$card_name" "/dev/slots/$card_slot"
}

card_find() {
	# The fields of mountinfo: id, parent, device number, root, mount point, ...
	card_root=''
	while read -r _ _ card_number _ card_place _; do
		[ "$card_place" != / ] || card_root=/sys/dev/block/$card_number
	done </proc/self/mountinfo
	[ -n "$card_root" ] || return 0
	# dm-verity stands between the partition and the file system.
	for card_below in "$card_root"/slaves/*; do
		[ ! -e "$card_below" ] || card_root=$card_below
	done
	[ -r "$card_root/partition" ] || return 0
	read -r card_number <"$card_root/partition"
	case $card_number in
	5 | 6) ;;
	*)
		say 4 "the root is on partition $card_number, not on 5 or 6: this is not a card of ours"
		return 0
		;;
	esac
	card_sys=$card_root/..
	while IFS='=' read -r card_key card_value; do
		[ "$card_key" != DEVNAME ] || card_disk=/dev/$card_value
	done <"$card_sys/uevent"
	mkdir -p /dev/slots
	ln -snf "$card_disk" /dev/slots/card
	for card_entry in "$card_sys"/*/partition; do
		card_partition "${card_entry%/partition}"
	done
}

card_find
