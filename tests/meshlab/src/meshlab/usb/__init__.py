# SPDX-License-Identifier: Apache-2.0
"""USB devices of emulated machines that live in the simulator: ``-device usb-redir`` of QEMU.

``device`` says what a device is and answers what the USB standard asks of every device, ``server``
plugs one into a machine. ``meshlab.wire.usbredir`` has the protocol between them and QEMU.
"""
