#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Programs that only some machines need are given to init where their device exists: the watchdog's
# feeder, the power button, shells for a simulator, and the simulator's relay. Serial ports are looked for here; whether
# there is a shell on them is for S60access.sh and the daemon to say.
#
# Read by rcS, whose say and $thicket_channels it uses.
# shellcheck disable=SC2154

known=' '
new=''

# $1: a device; $2: init's line for what uses it.
add_line() {
	known="$known$1 "
	new=1
	echo "$2" >>/etc/inittab
}

# $1: a terminal; $2: the shell for it. The shell opens the terminal, not init (the field before the
# first colon is empty). Init's child shares init's memory until it runs another program, and it logs
# in between: a ^C that waits in the terminal kills it right there, the lock of the C library's log
# stays taken, and init hangs for ever at its next message.
add_shell() {
	add_line "$1" "::respawn:$2 </dev/$1 >/dev/$1 2>&1"
}

add_virtual() {
	# Channels by which a simulator runs commands. The driver makes the names hvc0 to hvc7 together,
	# only those with a channel behind them can be opened. In a shell of its own, which leads no
	# session and so does not take the terminal for its own.
	for tty in hvc0 hvc1 hvc2 hvc3; do
		case $known in *" $tty "*) continue ;; esac
		if [ -c /dev/$tty ] && (: </dev/$tty) 2>/dev/null; then
			add_shell $tty sh
		fi
	done
	# A simulated radio: the port of this name exists in the simulator and nowhere else.
	for name in /sys/class/virtio-ports/*/name; do
		port=''
		[ ! -r "$name" ] || read -r port <"$name"
		[ "$port" != thicket.hwsim.0 ] || add_relay thicket.hwsim.0
	done
	[ "$thicket_channels" != usb ] || add_adapters
}

# A simulator of machines that have USB and no virtio: serial adapters instead, whose serial numbers
# say what they are for. Anybody can plug in such an adapter, so they count only where the kernel's
# parameters say that there is a simulator: who can change those has the card.
add_adapters() {
	for adapter in /sys/bus/usb-serial/devices/ttyUSB*; do
		tty=${adapter##*/}
		case $known in *" $tty "*) continue ;; esac
		number=''
		# Port, interface, device. It may be gone by now.
		read -r number 2>/dev/null <"$adapter/../../serial"
		case $number in
		thicket.hwsim.0) add_relay "/dev/$tty" ;;
		thicket.shell.*) add_shell "$tty" sh ;;
		esac
	done
}

# $1: the port of hwsim-relay.
add_relay() {
	case $known in *' relay '*) return ;; esac
	if modprobe mac80211_hwsim radios=0; then
		add_line relay "::respawn:/usr/sbin/hwsim-relay $1"
	else
		known="${known}relay "
		say 3 "no simulated radio: mac80211_hwsim could not be loaded"
	fi
}

# Init reads its table again, at once or when rcS has ended.
tell_init() {
	if [ -n "$new" ]; then
		new=''
		kill -HUP 1
	fi
}

# The hardware watchdog is armed before the daemon starts, so its line stands before the daemon's. It
# restarts the machine when nothing has been written for 60 s: a frozen kernel, or one so short of
# memory that no program runs. Every 10 s is often enough for an emulated node on a busy host.
add_watchdog() {
	[ -c /dev/watchdog ] || return 0
	table=''
	while IFS= read -r line; do
		case $line in
		*:/usr/bin/thicketd)
			table="$table::respawn:/sbin/watchdog -F -t 10 -T 60 /dev/watchdog
"
			new=1
			;;
		esac
		table="$table$line
"
	done </etc/inittab
	printf %s "$table" >/etc/inittab
}

# A power button: of a Pi 5, of an x86-64 machine. Pressing it switches off in order; who holds it down
# cuts the power. Kernels know no other input device, so a node without a button has no program for it.
add_button() {
	[ -c /dev/input/event0 ] && [ -x /sbin/acpid ] || return 0
	add_line button '::respawn:/sbin/acpid -f -l /dev/null -c /usr/lib/thicket/button'
}

add_watchdog
add_button

# shellcheck disable=SC2034 # used by S60access.sh
serial_terminals=''
for tty in ttyS0 ttyAMA0 ttyAMA10; do
	# A serial port that the driver has a name for but no hardware has type 0 (PORT_UNKNOWN).
	type=''
	[ ! -r /sys/class/tty/$tty/type ] || read -r type </sys/class/tty/$tty/type
	if [ -c /dev/$tty ] && [ "$type" != 0 ]; then
		serial_terminals="$serial_terminals $tty"
	fi
done
echo "$serial_terminals" >/run/thicket/serial

add_virtual
tell_init

# The host names its ports one by one, and on a busy host not before now: look again a few times,
# ever more seldom, until one round after the relay's port.
for driver in /sys/bus/virtio/drivers/virtio_console/virtio* "$thicket_channels"; do
	[ -e "$driver" ] || [ "$driver" = usb ] || continue
	(
		for delay in 0.1 0.2 0.4 0.8 1.5 3 6 12 24; do
			last=$known
			sleep $delay
			add_virtual
			tell_init
			case $last in *' relay '*) break ;; esac
		done
	) &
	break
done
