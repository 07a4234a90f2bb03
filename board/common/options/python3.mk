# SPDX-License-Identifier: Apache-2.0
# Two things that distributions have and a cross build lacks. Under qemu-user (TCG, x86-64) they save 7 % of
# what the daemon's imports cost, and 12 % of a loop's.
#
# The interpreter jumps from one instruction to the next (computed gotos). Configure finds out by running
# a program whether the compiler can do that, and takes it for missing when it cannot run one.
PYTHON3_CONF_OPTS += --with-computed-gotos
# Calls within libpython stay within it, and may be inlined, instead of each going through the table of
# symbols that another library could replace.
PYTHON3_CONF_ENV += CFLAGS_NODIST=-fno-semantic-interposition
