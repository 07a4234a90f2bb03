#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The light shows that the node starts, until the daemon has something else to show (docs/models.md).
# It is the one that the board has for activity, or the one that the daemon noted in /data/led; "off"
# is none. Until here it shows what its driver has it show.
#
# Read by rcS, after S20data.sh.

led_name=ACT
[ ! -f /data/led ] || read -r led_name </data/led
case $led_name in
'' | off | */*) led_name='' ;;
esac
led_folder=/sys/class/leds/$led_name
if [ -n "$led_name" ] && [ -w "$led_folder/trigger" ]; then
	read -r led_most <"$led_folder/max_brightness"
	# As KernelLight of thicket.device.led; an image whose kernel has no such trigger shows nothing.
	if echo pattern 2>/dev/null >"$led_folder/trigger"; then
		echo "$led_most 120 $led_most 0 0 120 0 0" >"$led_folder/pattern"
	fi
fi
