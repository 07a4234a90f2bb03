# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
# What a Raspberry Pi reads before Linux. Read by board/common/post-image.sh, whose $images and $top it
# uses.
# shellcheck disable=SC2154

firmware=$images/rpi-firmware

# $1: the directory of the first partition. The boot ROM starts here, whatever the model: Pi 3 and
# Zero 2 W with bootcode.bin, Pi 4 with start4.elf where its EEPROM is old. autoboot.txt then leads to
# a boot partition.
board_config_files() {
	cp "$firmware/bootcode.bin" "$firmware"/start*.elf "$firmware"/fixup*.dat "$1/"
	: >"$1/config.txt"
}

# $1: a boot partition's directory
board_boot_files() {
	cp "$firmware"/start*.elf "$firmware"/fixup*.dat "$images"/*.dtb "$1/"
	cp "$top/board/rpi64/config.txt" "$1/"
	mkdir -p "$1/overlays"
	while read -r overlay; do
		case $overlay in
		'' | '#'*) continue ;;
		esac
		cp "$firmware/overlays/$overlay.dtbo" "$1/overlays/"
	done <"$top/board/rpi64/overlays.txt"
	[ ! -e "$firmware/overlays/overlay_map.dtb" ] ||
		cp "$firmware/overlays/overlay_map.dtb" "$1/overlays/"
}
