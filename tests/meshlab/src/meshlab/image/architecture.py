# SPDX-License-Identifier: Apache-2.0
"""Architectures of nodes, by the names that Debian, the C library and the kernel have for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """An architecture that images are built for."""

    name: str
    """Debian's name."""
    triplet: str
    """The GNU triplet: in directories of libraries and names of compilers."""
    loader: str
    """The dynamic loader, at the place that programs name."""
    kernel: str
    """What of a kernel's build is started, relative to the objects."""
    objects: int
    """Objects of its kernel, about: what progress counts towards."""
    make: tuple[str, ...] = ()
    """What the kernel's makefiles must be told on a machine of another architecture."""

    @property
    def libraries(self) -> str:
        """Return where Debian has the shared libraries, the loader among them."""
        return f"usr/lib/{self.triplet}"

    @property
    def interpreter(self) -> str:
        """Return the dynamic loader's file."""
        return f"{self.libraries}/{self.loader.rpartition('/')[2]}"


NATIVE = Architecture(
    name="amd64",
    triplet="x86_64-linux-gnu",
    loader="usr/lib64/ld-linux-x86-64.so.2",
    kernel="vmlinux",
    objects=1340,
)
"""The building machine's (``meshlab.image.host``): what is built for it can be run there."""

ARM64 = Architecture(
    name="arm64",
    triplet="aarch64-linux-gnu",
    loader="usr/lib/ld-linux-aarch64.so.1",
    kernel="arch/arm64/boot/Image",
    objects=1600,
    make=("ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"),
)

ARCHITECTURES: Mapping[str, Architecture] = {one.name: one for one in (NATIVE, ARM64)}
