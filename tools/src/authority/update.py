# SPDX-License-Identifier: Apache-2.0
"""``thicket update`` on the engineer's machine: signs bundles and looks into them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from authority import files, offers, send
from authority.authority import Authority
from authority.holders import Holder
from authority.trusted import trusted
from authority.words import Parser, a_path, a_word, run_desk
from thicket.base.errors import ThicketError
from thicket.cli.common import BAD, OK, UsageError
from thicket.trust import cms
from thicket.trust.certificates import Certificate
from thicket.trust.fleet import Fleet
from thicket.trust.update_signer import SignerRefusedError
from thicket.update import bundle as bundles
from thicket.update import contents
from thicket.update.bundle import Bundle
from thicket.update.errors import BundleError

HELP: Final = """\
usage: thicket update [--folder DIR] COMMAND

  sign FILE [--signer NAME] [--out FILE] [--again] [--force]
                            sign a bundle that `make BOARD-bundle` made, with the key of a
                            signer that `thicket ca update-signer` made. FILE.unsigned
                            becomes FILE.raucb; --again takes one that is signed already,
                            --force replaces a FILE.raucb from which patches may be made
  inspect FILE [--json]     what a bundle says of itself; nothing is verified
  verify FILE [--root PEM [--revocations FILE]]
                            check signature, signer, revocations and every byte, by the
                            fleet in DIR or by the root certificate of one
  delta OLD NEW [--out FILE] [--force]
                            make a patch: what a device that runs OLD needs to make NEW,
                            which is signed; OLDVERSION-to-NEWVERSION.patch beside NEW
  offer NEW [--delta FILE ...] [--canaries N|NAME,...|none] [--waves 10,50,100]
        [--well 10m] [--window HH:MM-HH:MM] [--failures N] [--signer NAME] [--out FOLDER]
                            make a folder with everything that a fleet needs to take NEW, a
                            bundle or the file of an application: the patches, always with
                            that for any device, and the signed offer. Canaries take it
                            first; when they have been well (30s, 10m, 2h, 1d), the waves
                            (percent of the fleet) follow; the window is in UTC. An offer
                            that was in FOLDER before is replaced
  send FOLDER HOST          bring an offer to a node over ssh, which offers it to its fleet
  order pause|resume|abort|back [OFFER] [--signer NAME] [--out FILE] [--force]
                            sign an order about an offer, or whichever is in force

A file that is there already, and may be of use, is only replaced with --force.

DIR is THICKET_CA or ~/.local/share/thicket/fleet. Passphrases of keys and PINs of tokens are
asked for, or taken from THICKET_CA_PASSPHRASE and THICKET_CA_PIN.
"""

ENDING = ".raucb"
_UNSIGNED = ".unsigned"
_PIECE = 1 << 20


def main(words: list[str]) -> int:
    """Run ``thicket update``; return the exit status (as of ``thicket``).

    :param words: its arguments.
    """
    return run_desk("update", list(words), HELP, _COMMANDS)


# -- signing


def sign(
    path: Path,
    out: Path,
    fleet: Fleet,
    signer: Holder,
    when: datetime,
    *,
    again: bool = False,
) -> Bundle:
    """Sign a bundle and return what was written.

    What is in it is compared with its hash tree first: nobody signs a damaged file. ``out`` appears
    as a whole, and only if the signature counts in the fleet.

    :param out: where the signed bundle is put; ``path`` itself will do.
    :param when: the time of signing.
    :param again: drop a signature that is there.
    :raises BundleError: it is no bundle, or is signed already.
    :raises SignerRefusedError: the signature would not count.
    """
    with files.opened(path) as file:
        found = bundles.read(file)
        if found.message is not None and not again:
            raise _signed_already(path, found)
        bundles.check_contents(file, found.contents, found.verity)
        message = cms.sign(found.manifest.text(), signer.certificate, when, signer.key.sign)
        with files.replacing(out) as target:
            _copy(file, target, found.payload)
            target.write(bundles.end(message))
            target.flush()
            written = bundles.read(target)
            bundles.check_signer(written, fleet)
    return written


def _signed_already(path: Path, found: Bundle) -> BundleError:
    assert found.message is not None
    return BundleError(
        f"{path} is signed already, by {found.message.certificate.common_name!r}: --again drops "
        "that signature"
    )


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    source.seek(0)
    while size:
        data = source.read(min(_PIECE, size))
        if not data:
            raise BundleError("the file became shorter while it was read")
        target.write(data)
        size -= len(data)


def _sign(authority: Authority, rest: list[str]) -> int:
    parser = Parser("sign needs the FILE")
    parser.add_argument("file", type=a_path)
    parser.add_argument("--signer", type=a_word)
    parser.add_argument("--out", type=a_path)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--force", action="store_true")
    args = parser.parse_args(rest)
    # Before anybody is asked for a passphrase.
    with files.reading(args.file) as file:
        found = bundles.read(file)
    out = args.out or _signed_name(args.file)
    if found.message is not None and not args.again:
        raise _signed_already(args.file, found)
    files.check_place(out)
    if out.exists() and not args.force and not (args.again and out.samefile(args.file)):
        by = authority.update_signers.certificate(args.signer)
        print(f"{_same(out, found, by, authority.fleet)}: {out}. Nothing is to be done.")
        return OK
    signer = authority.update_signers.open(args.signer)
    done = sign(args.file, out, authority.fleet, signer, datetime.now(UTC), again=args.again)
    print(f"{_line(done, out.stat().st_size)}, signed by {signer.name!r}: {out}")
    return OK


def _same(out: Path, wanted: Bundle, by: Certificate, fleet: Fleet) -> str:
    """Return what a file is that holds a bundle signed by one signer already.

    A signature is another one each time. So a file that is signed anew is another one, which
    patches and offers that were made from it no longer fit.

    :raises AuthorityError: it holds something else, and is not replaced.
    """
    with files.opened(out) as file:
        try:
            found = bundles.read(file)
        except BundleError:
            raise files.is_there(out, "and no bundle") from None
        if found.message is None:
            raise files.is_there(out, "and a bundle without a signature")
        name = found.message.certificate.common_name
        words = f"signed by {name!r} on {found.message.signed_at:%Y-%m-%d %H:%M} UTC"
        if found.manifest.text() != wanted.manifest.text():
            raise files.is_there(out, f"another bundle, {words}")
        if found.message.certificate.der != by.der:
            raise files.is_there(
                out, f"the same bundle, {words}; patches made from it would fit no longer"
            )
        try:
            bundles.check_signer(found, fleet)
            bundles.check_contents(file, found.contents, found.verity)
        except ThicketError as error:
            raise files.is_there(out, f"and damaged ({error})") from None
    return f"{_line(found, out.stat().st_size)}, is {words}"


def _signed_name(path: Path) -> Path:
    if path.name.endswith(ENDING):
        return path
    return path.with_name(path.name.removesuffix(_UNSIGNED) + ENDING)


# -- looking


def _inspect(_authority: Authority, rest: list[str]) -> int:
    parser = Parser("inspect needs the FILE")
    parser.add_argument("file", type=a_path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(rest)
    with files.reading(args.file) as file:
        found = bundles.read(file)
    size = args.file.stat().st_size
    if args.json:
        print(json.dumps(_facts(found, size), indent=2))
        return OK
    print(_line(found, size))
    for image in found.manifest.images:
        hooks = f", hook {' '.join(image.hooks)}" if image.hooks else ""
        print(f"  {image.slot:<10} {_mib(image.size):>10}  {image.filename}{hooks}")
    print(f"  {'hash tree':<10} {_mib(found.verity.size):>10}  {found.verity.root}")
    if found.message is None:
        print("Not signed.")
        return OK
    message = found.message
    print(
        f"Signed on {message.signed_at:%Y-%m-%d %H:%M} UTC by "
        f"{message.certificate.common_name!r}, it says; `thicket update verify` checks it."
    )
    return OK


def _facts(found: Bundle, size: int) -> dict[str, Any]:
    manifest, message = found.manifest, found.message
    return {
        "compatible": manifest.compatible,
        "version": manifest.version,
        "build": manifest.build,
        "epoch": manifest.epoch,
        "bytes": size,
        "images": [image._asdict() for image in manifest.images],
        "hook": manifest.hook or None,
        "verity": found.verity._asdict(),
        "meta": manifest.meta,
        "signature": message
        and {
            "signer": message.certificate.common_name,
            "signed_at": f"{message.signed_at:%Y-%m-%dT%H:%M:%SZ}",
            "until": f"{message.certificate.not_after:%Y-%m-%dT%H:%M:%SZ}",
        },
    }


def _line(found: Bundle, size: int) -> str:
    one = found.manifest
    return f"{one.compatible} {one.version} (build {one.build}, epoch {one.epoch}), {_mib(size)}"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _verify(authority: Authority, rest: list[str]) -> int:
    parser = Parser("verify needs the FILE")
    parser.add_argument("file", type=a_path)
    parser.add_argument("--root", type=a_path)
    parser.add_argument("--revocations", type=a_path)
    args = parser.parse_args(rest)
    if args.root is None and args.revocations is not None:
        raise UsageError("--revocations goes with --root; the fleet in DIR has its own list")
    fleet, revoked, how = trusted(authority, args.root, args.revocations)
    faults: list[ThicketError] = []
    with files.reading(args.file) as file:
        found = bundles.read(file)
        print(_line(found, args.file.stat().st_size))
        try:
            signer = bundles.check_signer(found, fleet, revoked=revoked)
        except (SignerRefusedError, BundleError) as error:
            faults.append(error)
        else:
            assert found.message is not None
            print(
                f"signed on {found.message.signed_at:%Y-%m-%d %H:%M} UTC by {signer!r} of fleet "
                f"{fleet.name!r}; {how}"
            )
    try:
        contents.check(str(args.file), found.contents, found.verity)
    except BundleError as error:
        faults.append(error)
    else:
        print(f"every byte is as the manifest says ({found.contents // 4096} blocks)")
    for fault in faults:
        sys.stderr.write(f"thicket update: {args.file}: {fault}\n")
    return BAD if faults else OK


_COMMANDS: Final[dict[str, Callable[[Authority, list[str]], int]]] = {
    "delta": offers.delta,
    "inspect": _inspect,
    "offer": offers.offer,
    "order": offers.order,
    "send": send.send,
    "sign": _sign,
    "verify": _verify,
}

if __name__ == "__main__":
    from thicket.cli.main import guarded

    sys.exit(guarded(main, sys.argv[1:]))
