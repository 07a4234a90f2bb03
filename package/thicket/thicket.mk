################################################################################
#
# thicket
#
################################################################################

THICKET_VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' \
	$(BR2_EXTERNAL_THICKET_PATH)/../app/pyproject.toml)
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

# Docstrings are a tenth of the byte code, and nothing on a node reads them. What is compiled here is
# left alone by Buildroot, which compiles what has a source.
THICKET_SITE_PACKAGES = /usr/lib/python$(PYTHON3_VERSION_MAJOR)/site-packages/thicket

define THICKET_COMPILE
	$(HOST_DIR)/bin/python3 -m compileall -q -f -b -o 2 \
		--invalidation-mode unchecked-hash -s $(TARGET_DIR) -p / \
		$(TARGET_DIR)$(THICKET_SITE_PACKAGES)
	find $(TARGET_DIR)$(THICKET_SITE_PACKAGES) -name '*.py' -delete
endef
THICKET_POST_INSTALL_TARGET_HOOKS += THICKET_COMPILE

$(eval $(python-package))
