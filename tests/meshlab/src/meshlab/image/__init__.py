# SPDX-License-Identifier: Apache-2.0
"""Builds what a simulated node boots: kernel, root filesystem and disks.

``meshlab.image.lab.build`` makes the lab image, ``meshlab.image.config`` the disks of one node.
``python -m meshlab.image`` does the former by hand. See docs/lab-image.md.
"""
