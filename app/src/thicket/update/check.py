# SPDX-License-Identifier: Apache-2.0
"""RAUC's handler before it installs: is the bundle that it has mounted for this node?

RAUC tells where it has mounted the bundle. Below that are dm-verity and a loop device, which names
the file: what is judged is the very file that RAUC has open. Nothing is written yet.
"""

from __future__ import annotations

import os
import sys

from thicket.base.errors import ThicketError
from thicket.base.paths import Paths
from thicket.config.load import load
from thicket.control.client import ClientError, request
from thicket.device.boot_slots import Slots
from thicket.update import contents, install, kept, leftovers, terms
from thicket.update.bundle import Bundle
from thicket.update.judge import InstallError

#: Environment variable: where RAUC has mounted the bundle (RAUC's reference, "Handlers").
MOUNTED = "RAUC_BUNDLE_MOUNT_POINT"
#: Seconds that the daemon may take for asking the chip.
_ASK = 20.0


def backing_file(paths: Paths, mount_point: str) -> str:
    """Return the file that a mounted bundle is in.

    :raises InstallError: nothing of that kind is mounted there.
    """
    try:
        with open(paths.root + "/proc/self/mountinfo", encoding="utf-8") as file:
            # proc(5): identifier, parent, device number, root, mount point
            fields = [line.split(" ", 5) for line in file]
        number = next(line[2] for line in fields if line[4] == mount_point)
        device = f"{paths.sys}/dev/block/{number}"
        slaves = f"{device}/slaves"
        if os.path.isdir(slaves) and (below := os.listdir(slaves)):
            device = f"{slaves}/{below[0]}"
        with open(f"{device}/loop/backing_file", encoding="utf-8") as file:
            return file.read().rstrip("\n")
    except (OSError, StopIteration, UnicodeDecodeError):
        raise InstallError("not-mounted", f"no bundle is mounted at {mount_point}") from None


def epoch_of_chip(paths: Paths) -> int:
    """Return the epoch that the chip keeps, as the daemon says; 0 where it does not answer.

    The boot record has the same epoch, unless the card is another one than before; so a node of
    which the daemon does not run can be repaired with ``rauc install``.
    """
    try:
        answer = request(paths.control, "update-epoch", {}, timeout=_ASK)
        return int(answer["epoch"])
    except (ClientError, ValueError, TypeError, KeyError) as error:
        sys.stderr.write(f"thicket: the chip's epoch is not known: {error}\n")
        return 0


def alone(paths: Paths) -> None:
    """Make sure that the daemon installs nothing while somebody runs RAUC by hand.

    :raises InstallError: it does.
    """
    if os.environ.get(leftovers.MARK):
        return  # this is the daemon's
    try:
        state = request(paths.control, "update-progress", {}, timeout=_ASK)["state"]
    except (ClientError, TypeError, KeyError):
        return
    if state in ("checking", "writing"):
        raise InstallError("busy", "the daemon is installing a bundle: `thicket update status`")


def whole(path: str, found: Bundle) -> None:
    """Make sure that every byte of a bundle was compared with what was signed.

    The daemon has done it before it started RAUC, for the bundle that it names.

    :raises ThicketError: the bundle is another one, or damaged.
    """
    if not os.environ.get(leftovers.MARK):
        contents.check(path, found.contents, found.verity)
    elif kept.name_of(found.manifest) != os.environ.get(install.CHECKED):
        raise InstallError(
            install.CHANGED,
            f"{path} was replaced by another bundle when it had been checked; nothing is written: "
            "install again",
        )


def main() -> int:
    """Judge the bundle that RAUC has mounted; the exit status is 0 or 1."""
    paths = Paths()
    try:
        path = backing_file(paths, os.environ.get(MOUNTED, ""))
        slots = Slots(paths)
        install.may_write(slots)
        install.has_room(paths)
        alone(paths)
        found = terms.gather(paths, load(paths).settings, slots, epoch_of_chip(paths))
        judged = install.check(path, found, again=bool(os.environ.get(install.AGAIN)))
        whole(path, judged.bundle)
    except ThicketError as error:
        # RAUC shows the last line.
        sys.stderr.write(f"thicket: {error}\n")
        return 1
    print(f"thicket: it may be installed, signed by {judged.signer or 'one of [update] keyring'}")
    return 0
