#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Kernel settings of /etc/sysctl.conf, without starting sysctl; the loopback interface.
# Read by rcS.

while read -r key equals value; do
	case $key in
	'' | '#'* | ';'*) continue ;;
	esac
	if [ "$equals" != = ] || [ ! -w "/proc/sys/$key" ] || ! echo "$value" >"/proc/sys/$key"; then
		say 4 "sysctl.conf: cannot set: $key $equals $value"
	fi
done </etc/sysctl.conf

ifconfig lo up
