# SPDX-License-Identifier: Apache-2.0
"""The node's own key: made at each start, kept in memory, vouched for by the device's chip.

The chip signs one certificate at each start and renewal; the TLS of every link then uses the node's
key, which OpenSSL has in memory. A thief of the memory has a key that ends with its certificate; a
thief of the card has none at all.

The certificate of a node that does not know the time ends when the device's does, and is replaced
as soon as the clock is set.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from logging import getLogger
from typing import TYPE_CHECKING, NamedTuple, Protocol

from thicket.base.files import sync_folder, write_atomically
from thicket.trust import certificates as x509
from thicket.trust import fleet as fleets
from thicket.trust.certificates import Certificate, CertificateError
from thicket.trust.fleet import Fleet
from thicket.trust.verify import Clock, Peer, check_peer

if TYPE_CHECKING:
    from thicket.identity.aio import AsyncAtecc
    from thicket.identity.chip.atecc import Atecc

log = getLogger(__name__)

LIFETIME = timedelta(hours=24)
"""Validity of a node's certificate when the time is known."""

RENEW_AT = 2 / 3
"""Part of the validity after which a certificate is replaced."""

BACKDATE = timedelta(hours=1)
"""How far before now a certificate begins, for peers whose clock is behind."""


class DeviceKey(Protocol):
    """What signs for the device: its chip, or a key in a file where there is none.

    :ivar chain: device and signer certificate (DER).
    """

    chain: tuple[bytes, bytes]

    async def sign(self, digest: bytes) -> bytes:
        """Return R and S (64 bytes) for a SHA-256 digest."""


class ChipKey:
    """The key in slot 0 of a chip that was enrolled in a fleet; :meth:`load` makes it."""

    def __init__(self, chip: AsyncAtecc, chain: tuple[bytes, bytes]) -> None:
        self._chip = chip
        self.chain = chain

    async def sign(self, digest: bytes) -> bytes:
        """See ``DeviceKey``.

        :raises ChipError: the chip does not sign.
        """
        return await self._chip.sign(0, digest)

    @classmethod
    async def load(cls, chip: AsyncAtecc, fleet: Fleet, folder: str | None = None) -> ChipKey:
        """Find the certificates of this fleet for the chip's key, see :func:`enrolled_chain`.

        :raises ChipError: the chip cannot be read.
        :raises CertificateError: it was not enrolled in this fleet.
        """
        return cls(chip, await chip.call(lambda c: enrolled_chain(c, fleet, folder)))


def enrolled_chain(chip: Atecc, fleet: Fleet, folder: str | None = None) -> tuple[bytes, bytes]:
    """Return device and signer certificate (DER) of a chip's enrolment in ``fleet``.

    They are looked for in the chip, the auxiliary set first, then the primary; then in the file in
    ``folder`` that an enrolment has put there, for chips whose slots cannot be written.

    :raises ChipError: the chip cannot be read.
    :raises CertificateError: it was not enrolled in this fleet.
    """
    from hashlib import sha256

    from thicket.identity.chip.errors import ChipRefusedError
    from thicket.trust import chip_slots, openssl

    serial, key = chip.serial_number(), chip.public_key(0)
    findings: list[str] = []

    def check(device: bytes, signer: bytes) -> tuple[bytes, bytes]:
        keys = (Certificate(signer).public_key, fleet.root.public_key)
        for below, above in zip((device, signer), keys, strict=True):
            read = Certificate(below)
            if not openssl.verify(above, sha256(read.tbs).digest(), read.signature):
                raise CertificateError(f"{read.common_name!r} is not of fleet {fleet.name!r}")
        return device, signer

    for name, slots in (("auxiliary", chip_slots.AUXILIARY), ("primary", chip_slots.PRIMARY)):
        try:
            found = chip_slots.read_set(chip, slots)
        except ChipRefusedError:  # another kind of chip, with a secret in this slot
            findings.append(f"{name} slots cannot be read")
            continue
        if found is None:
            findings.append(f"{name} slots are empty")
            continue
        try:
            signer = fleets.rebuild_signer(fleet, found.signer, found.signer_key)
            device = fleets.rebuild_device(fleet, found.device, serial, key, found.signer_key)
            return check(device, signer)
        except CertificateError as error:
            findings.append(f"{name} slots: {error}")
    if folder is not None:
        try:
            device, signer = read_chain(folder)
            read = Certificate(device)
            if (read.common_name, read.public_key) != (serial.hex(), key):
                raise CertificateError(f"it is for the key of {read.common_name}")
            return check(device, signer)
        except FileNotFoundError:
            pass
        except (OSError, CertificateError) as error:
            findings.append(f"{folder}/{CHAIN_FILE}: {error}")
    raise CertificateError(
        f"chip {serial.hex()} is not enrolled in fleet {fleet.name!r} ({'; '.join(findings)}); "
        "`thicket ca enroll` does that"
    )


class FileKey:
    """A device key in a file (DER), for nodes without a chip: a software identity."""

    def __init__(self, private_key: bytes, chain: tuple[bytes, bytes]) -> None:
        self._key = private_key
        self.chain = chain

    async def sign(self, digest: bytes) -> bytes:
        """See ``DeviceKey``."""
        from thicket.trust import openssl

        return openssl.sign(self._key, digest)

    @classmethod
    def load(cls, folder: str) -> FileKey:
        """Use the key and the certificates that an enrolment has put into ``folder``.

        :raises CertificateError: there are none, or they do not belong together.
        """
        from thicket.trust import openssl

        key = software_key(folder)
        try:
            chain = read_chain(folder)
        except OSError as error:
            raise CertificateError(
                f"this node is not enrolled in a fleet yet ({folder}/{CHAIN_FILE}: "
                f"{error.strerror}); `thicket ca enroll --ssh NODE --software` does that, from the "
                "engineer's machine"
            ) from None
        if Certificate(chain[0]).public_key != openssl.public_key(key):
            raise CertificateError(f"{folder}/{CHAIN_FILE} is not for the key in {KEY_FILE}")
        return cls(key, chain)


KEY_FILE = "device.key"
CHAIN_FILE = "device.pem"
"""In the node's folder: a software identity's private key (DER), and the certificates (PEM) of that
or of a chip whose slots cannot be written."""


def read_chain(folder: str) -> tuple[bytes, bytes]:
    """Return device and signer certificate (DER) in ``CHAIN_FILE``. Nothing is verified.

    :raises OSError: the file cannot be read.
    :raises CertificateError: it does not hold two certificates.
    """
    path = f"{folder}/{CHAIN_FILE}"
    try:
        with open(path, encoding="ascii") as file:
            chain = x509.from_pem(file.read(4 * x509.MAX_SIZE))
    except UnicodeDecodeError as error:
        raise CertificateError(f"{path} holds no certificates: {error}") from None
    if len(chain) != 2:
        raise CertificateError(f"{path} holds {len(chain)} certificates instead of 2")
    return chain[0], chain[1]


def keep_chain(folder: str, chain: tuple[bytes, bytes]) -> str:
    """Make ``chain`` the contents of ``CHAIN_FILE``, and return its path.

    :raises OSError: the file cannot be written; the old one stays.
    """
    path = f"{folder}/{CHAIN_FILE}"
    write_atomically(path, "".join(map(x509.pem, chain)).encode(), mode=0o600)
    return path


def software_key(folder: str) -> bytes:
    """Return the private key of a node without chip from ``folder``; make it if there is none.

    A damaged file is never replaced, because the node's certificates would be worth nothing.

    :raises OSError: the file cannot be read or made.
    :raises CertificateError: it is damaged.
    """
    from thicket.trust import openssl

    path = f"{folder}/{KEY_FILE}"
    if not os.path.exists(path):
        new = f"{path}.{os.urandom(4).hex()}"
        write_atomically(new, openssl.generate_key(), mode=0o600)
        try:
            # the daemon and an enrolment may both make one: the first that is there stays
            with contextlib.suppress(FileExistsError):
                os.link(new, path)
        finally:
            os.unlink(new)
        sync_folder(folder)
    with open(path, "rb") as file:
        key = file.read(x509.MAX_SIZE)
    try:
        openssl.public_key(key)
    except openssl.OpenSslError as error:
        raise CertificateError(
            f"{path} is damaged ({error}); put a good copy back, or remove it and enrol the node "
            "anew"
        ) from None
    return key


class Credentials(NamedTuple):
    """A node's key and what vouches for it. The key is secret: never print this.

    :ivar chain: node, device and signer certificate (DER).
    :ivar renew_at: when to replace it; None when the time was not known: as soon as it is.
    :ivar peer: what others will see.
    """

    private_key: bytes
    chain: tuple[bytes, ...]
    renew_at: datetime | None
    peer: Peer

    def __repr__(self) -> str:
        return f"Credentials({self.peer.host}, {self.peer.device})"


async def make_credentials(
    device: DeviceKey, fleet: Fleet, clock: Clock, *, lifetime: timedelta = LIFETIME
) -> Credentials:
    """Make a key, let the device sign its certificate, and check it as a peer would.

    :raises RefusedError: peers would refuse it (expired, another fleet).
    :raises ChipError: the chip fails.
    :raises CertificateError: the device's certificate is none.
    """
    from thicket.trust import openssl

    key = openssl.generate_key()
    authority = Certificate(device.chain[0])
    if clock.now is None:
        begin, end, renew_at = authority.not_before, authority.not_after, None
    else:
        now = max(clock.now, clock.floor).replace(microsecond=0)
        begin = max(now - BACKDATE, authority.not_before)
        end = now + min(lifetime, authority.not_after - now)  # which is in the calendar
        renew_at = now + (end - now) * RENEW_AT
    serial = int.from_bytes(os.urandom(16), "big") >> 2 | 1 << 125
    profile = fleets.node_profile(fleet, authority, openssl.public_key(key), serial, (begin, end))
    leaf = profile.signed(await device.sign(profile.digest()))
    chain = (leaf, *device.chain)
    return Credentials(key, chain, renew_at, check_peer(chain, fleet, clock=clock))


async def keep_renewed(
    device: DeviceKey,
    fleet: Fleet,
    clock: Callable[[], Clock],
    use: Callable[[Credentials], None],
    *,
    wait: Callable[[float], Awaitable[None]],
    look_again: float = 60.0,
) -> None:
    """Make credentials now and before they end, for ever.

    What the first attempt raises is raised; later a node keeps what it has and tries again.

    :param use: gets each of them.
    :param wait: sleeps for a number of seconds.
    :param look_again: the longest sleep, because a clock may be set at any time.
    """
    current = await make_credentials(device, fleet, clock())
    use(current)
    while True:
        await wait(look_again)
        now = clock().now
        if now is None or (current.renew_at is not None and now < current.renew_at):
            continue
        try:
            current = await make_credentials(device, fleet, clock())
        except Exception as error:  # the chip or its bus; what there is works until it ends
            log.warning("the node's certificate is not renewed: %s", error)
            continue
        use(current)


def key_pem(private_key: bytes) -> str:
    """Return a private key (RFC 5915) in PEM."""
    return x509.pem(private_key).replace("CERTIFICATE", "EC PRIVATE KEY")
