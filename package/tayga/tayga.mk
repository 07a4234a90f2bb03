################################################################################
#
# tayga
#
################################################################################

TAYGA_VERSION = 0.9.2
TAYGA_SOURCE = tayga-$(TAYGA_VERSION).tar.bz2
TAYGA_SITE = http://www.litech.org/tayga
TAYGA_LICENSE = GPL-2.0+
TAYGA_LICENSE_FILES = COPYING
# writev() is used without its header, which compilers of today refuse.
TAYGA_CONF_ENV = CFLAGS="$(TARGET_CFLAGS) -include sys/uio.h"

$(eval $(autotools-package))
