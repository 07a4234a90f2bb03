################################################################################
#
# hwsim-relay
#
################################################################################

HWSIM_RELAY_VERSION = 1
HWSIM_RELAY_SITE = $(BR2_EXTERNAL_THICKET_PATH)/package/hwsim-relay/src
HWSIM_RELAY_SITE_METHOD = local
HWSIM_RELAY_LICENSE = Apache-2.0
HWSIM_RELAY_LICENSE_FILES = LICENSE

define HWSIM_RELAY_BUILD_CMDS
	$(TARGET_MAKE_ENV) $(MAKE) $(TARGET_CONFIGURE_OPTS) -C $(@D) hwsim-relay
endef

define HWSIM_RELAY_INSTALL_TARGET_CMDS
	$(TARGET_MAKE_ENV) $(MAKE) $(TARGET_CONFIGURE_OPTS) -C $(@D) \
		DESTDIR="$(TARGET_DIR)" install
endef

define HWSIM_RELAY_LINUX_CONFIG_FIXUPS
	$(call KCONFIG_ENABLE_OPT,CONFIG_VIRTIO_CONSOLE)
endef

$(eval $(generic-package))
