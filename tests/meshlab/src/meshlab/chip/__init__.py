# SPDX-License-Identifier: Apache-2.0
"""The virtual security chip of every node: an ATECC608A on an I2C bus that QEMU's guests reach.

``atecc608`` is the chip, ``state`` what it keeps, ``bus`` the wires, ``vhost_user`` and ``i2c`` the
way from the guest to the wires, ``usb`` another one for machines without virtio, ``server`` the
whole of it for one node.
"""
