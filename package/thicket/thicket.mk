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
THICKET_LICENSE_FILES = LICENSE

# The image's defaults: they fill in what the device's own file does not set.
define THICKET_INSTALL_DEFAULTS
	$(INSTALL) -D -m 0644 $(@D)/src/thicket/thicket.toml \
		$(TARGET_DIR)/usr/share/thicket/thicket.toml
endef
THICKET_POST_INSTALL_TARGET_HOOKS += THICKET_INSTALL_DEFAULTS

$(eval $(python-package))
