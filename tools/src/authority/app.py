# SPDX-License-Identifier: Apache-2.0
"""``thicket app`` on the engineer's machine: builds applications, signed, and looks into them."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from authority import app_build, files
from authority.app_build import Wanted
from authority.authority import Authority
from authority.holders import Holder
from authority.trusted import trusted
from authority.words import Command, Parser, a_path, a_word, run_desk
from host import stop
from thicket.applications import app_file, app_tree
from thicket.applications.app_file import ANY, ARCHITECTURES, ENDING, About, AppError, AppFile
from thicket.base.errors import ThicketError
from thicket.cli.common import BAD, OK, UsageError
from thicket.trust import cms, signed_file
from thicket.trust.fleet import Fleet
from thicket.trust.update_signer import SignerRefusedError

HELP: Final = """\
usage: thicket app [--folder DIR] COMMAND

  build PROJECT [--for aarch64|x86_64|any] [--image VERSIONS] [--signer NAME] [--out DIR]
                            make NAME-VERSION.app of a Python project and the wheels of
                            what it needs, signed with the key of a signer that `thicket
                            ca update-signer` made. VERSIONS of the image that it runs
                            on are written as '>=0.1,<1'
  inspect FILE [--json]     what the file of an application says of itself; nothing is
                            verified
  verify FILE [--root PEM [--revocations FILE]]
                            check signature, signer, revocations and every byte, by the
                            fleet in DIR or by the root certificate of one

DIR is THICKET_CA or ~/.local/share/thicket/fleet. Passphrases of keys and PINs of tokens are
asked for, or taken from THICKET_CA_PASSPHRASE and THICKET_CA_PIN.
"""


def main(words: list[str]) -> int:
    """Run ``thicket app``; return the exit status (as of ``thicket``).

    :param words: its arguments.
    """
    return run_desk("app", list(words), HELP, _COMMANDS)


def sign(
    contents: Path,
    about: About,
    out: Path,
    *,
    fleet: Fleet,
    signer: Holder,
    when: datetime,
) -> None:
    """Write the signed file of an application.

    ``out`` appears as a whole, and only if the signature counts in the fleet.

    :param when: the time of signing.
    :raises SignerRefusedError: the signature would not count.
    """
    message = cms.sign(about.text(), signer.certificate, when, signer.key.sign)
    with contents.open("rb") as source, files.replacing(out) as target:
        shutil.copyfileobj(source, target)
        target.write(signed_file.pack(message))
        target.flush()
        app_file.check_signer(app_file.read(target), fleet)
        app_file.check_contents(target, about)


def _build(authority: Authority, rest: list[str]) -> int:
    parser = Parser("build needs the folder of the PROJECT")
    parser.add_argument("project", type=a_path)
    parser.add_argument("--for", dest="architecture", choices=ARCHITECTURES, default=ANY)
    parser.add_argument("--image", type=a_word)
    parser.add_argument("--signer", type=a_word)
    parser.add_argument("--out", type=a_path, default=Path())
    args = parser.parse_args(rest)
    images = app_build.images_of(args.image) if args.image else app_build.own_images()
    now = datetime.now(UTC)
    fleet = authority.fleet
    wanted = Wanted(args.architecture, images, fleet.identifier, int(now.timestamp()))
    with stop.temporary("thicket-app-") as work:
        contents, about = app_build.build(args.project.absolute(), work, wanted)
        signer = authority.update_signers.open(args.signer)
        args.out.mkdir(parents=True, exist_ok=True)
        suffix = "" if about.architecture == ANY else f"-{about.architecture}"
        out = args.out / f"{about.name}-{about.version}{suffix}{ENDING}"
        sign(contents, about, out, fleet=fleet, signer=signer, when=now)
    print(f"{_line(about, out.stat().st_size)}, signed by {signer.name!r}: {out}")
    return OK


def _inspect(_authority: Authority, rest: list[str]) -> int:
    parser = Parser("inspect needs the FILE")
    parser.add_argument("file", type=a_path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(rest)
    with files.reading(args.file) as file:
        found = app_file.read(file)
    about, message = found
    size = args.file.stat().st_size
    if args.json:
        print(json.dumps(_facts(found, size), indent=2))
        return OK
    print(_line(about, size))
    below = f" and below {about.below}" if about.below else ""
    print(f"  images        from {about.least}{below}, Python {about.python}")
    print(f"  architecture  {about.architecture}")
    print(f"  applications  {', '.join(about.applications)}")
    print(f"  modules       {', '.join(about.modules)}")
    print(
        f"Signed on {message.signed_at:%Y-%m-%d %H:%M} UTC by "
        f"{message.certificate.common_name!r}, it says; `thicket app verify` checks it."
    )
    return OK


def _facts(found: AppFile, size: int) -> dict[str, Any]:
    about, message = found
    return {
        **about._asdict(),
        "below": about.below or None,
        "fleet": about.fleet.hex(),
        "sha256": about.sha256.hex(),
        "identifier": about.identifier.hex(),
        "bytes": size,
        "signature": {
            "signer": message.certificate.common_name,
            "signed_at": f"{message.signed_at:%Y-%m-%dT%H:%M:%SZ}",
            "until": f"{message.certificate.not_after:%Y-%m-%dT%H:%M:%SZ}",
        },
    }


def _line(about: About, size: int) -> str:
    built = datetime.fromtimestamp(about.number, UTC)
    return f"{about.name} {about.version} (built {built:%Y-%m-%d %H:%M} UTC), {size / 1024:.1f} KiB"


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
        found = app_file.read(file)
        print(_line(found.about, args.file.stat().st_size))
        try:
            signer = app_file.check_signer(found, fleet, revoked=revoked)
        except (AppError, SignerRefusedError) as error:
            faults.append(error)
        else:
            print(
                f"signed on {found.message.signed_at:%Y-%m-%d %H:%M} UTC by {signer!r} of fleet "
                f"{fleet.name!r}; {how}"
            )
        try:
            app_file.check_contents(file, found.about)
            app_tree.check_form(file, found.about.size)
        except AppError as error:
            faults.append(error)
        else:
            print(f"every byte is as it was signed ({found.about.size} bytes)")
    for fault in faults:
        sys.stderr.write(f"thicket app: {args.file}: {fault}\n")
    return BAD if faults else OK


_COMMANDS: Final[dict[str, Command]] = {
    "build": _build,
    "inspect": _inspect,
    "verify": _verify,
}

if __name__ == "__main__":
    from thicket.cli.main import guarded

    sys.exit(guarded(main, sys.argv[1:]))
