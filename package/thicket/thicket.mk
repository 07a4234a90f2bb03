################################################################################
#
# thicket
#
################################################################################

THICKET_VERSION = 0.1.0
THICKET_SITE = $(BR2_EXTERNAL_THICKET_PATH)/../app
THICKET_SITE_METHOD = local
THICKET_SETUP_TYPE = setuptools
THICKET_LICENSE = Apache-2.0

$(eval $(python-package))
