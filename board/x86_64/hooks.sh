# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
# What x86-64 has on its partitions beyond kernel and command line. Read by board/common/post-image.sh.

board_config_files() {
	:
}

# $1: a boot partition's directory
board_boot_files() {
	printf '# What a Raspberry Pi reads; the simulated boot ROM reads it as well.\nkernel=bzImage\n' \
		>"$1/config.txt"
}
