# SPDX-License-Identifier: Apache-2.0
include $(sort $(wildcard $(BR2_EXTERNAL_THICKET_PATH)/package/*/*.mk))

# A kernel of nothing but the fragments: BR2_LINUX_KERNEL_DEFCONFIG="allnoconfig" starts from Kconfig's
# allnoconfig with the fragments as its answers, where Buildroot would look for a file
# allnoconfig_defconfig. Options that a fragment opens up stay off unless a fragment names them.
ifeq ($(BR2_LINUX_KERNEL_USE_DEFCONFIG)-$(call qstrip,$(BR2_LINUX_KERNEL_DEFCONFIG)),y-allnoconfig)
THICKET_LINUX_ANSWERS = $(BUILD_DIR)/thicket-linux-answers.config
LINUX_KCONFIG_DEFCONFIG = allnoconfig
LINUX_KCONFIG_OPTS += KCONFIG_ALLCONFIG=$(THICKET_LINUX_ANSWERS)

# The answers are made where make reads its files, because the configuration may be the first thing
# that happens; they are only replaced when they differ.
ifeq ($(BR_BUILDING),y)
$(shell mkdir -p $(BUILD_DIR) && \
	cat $(LINUX_KCONFIG_FRAGMENT_FILES) >$(THICKET_LINUX_ANSWERS).new && \
	{ cmp -s $(THICKET_LINUX_ANSWERS).new $(THICKET_LINUX_ANSWERS) || \
		cp $(THICKET_LINUX_ANSWERS).new $(THICKET_LINUX_ANSWERS); }; \
	rm -f $(THICKET_LINUX_ANSWERS).new)
endif
endif

# How packages of Buildroot are built beyond what its configuration can say, a file for each.
include $(sort $(wildcard $(BR2_EXTERNAL_THICKET_PATH)/board/common/options/*.mk))
