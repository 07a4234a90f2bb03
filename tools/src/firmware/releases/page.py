# SPDX-License-Identifier: Apache-2.0
"""``index.html`` of a release: for a person who opens the folder in a browser. No scripts."""

from __future__ import annotations

from html import escape

from firmware.blockdev import human
from firmware.releases import index, signature, sums
from firmware.releases.index import File, Index

FILE = "index.html"

BOARDS = {
    "rpi64": "Raspberry Pi 3, 4, 5, Zero 2 W and Compute Modules 3 to 5",
    "x86_64": "x86-64, for fleets in QEMU",
    "standin": "The simulator (x86-64). No device starts from it",
    "standin-rpi64": "The simulator (emulated Raspberry Pi). No device starts from it",
}

_KINDS = {
    index.IMAGE: "card image, for a new card",
    index.MAP: "block map of the card image, for bmaptool and make flash",
    index.BUNDLE: "update, for devices that run",
    index.DELTA: "update on its way to devices, packed",
    index.SBOM: "bill of materials (CycloneDX)",
    index.LICENCES: "licences of what is in it",
}

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Thicket {version}</title>
<style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font-family: sans-serif;
  line-height: 1.5 }}
table {{ border-collapse: collapse }}
td, th {{ padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top }}
td.size {{ text-align: right; white-space: nowrap }}
pre {{ background: #eee; color: #000; padding: .5rem 1rem; overflow-x: auto }}
code {{ overflow-wrap: anywhere }}
</style>
</head>
<body>
<h1>Thicket {version}</h1>
<p>Firmware for devices that form their own mesh network and their own cluster. Version {version}
of {date}, security epoch {epoch}, commit <code>{commit}</code>. {signed}</p>
{boards}
<h2>Flash a card</h2>
<p>In a checkout of Thicket on Linux, with the address of this page. It checks signature and
checksums, and puts your configuration on the card:</p>
<pre>make flash DEV=/dev/sdX IMAGE=ADDRESS{board} CONFIG=my.toml</pre>
<p>Without a checkout, on Linux, Windows or macOS: download the card image (<code>.img.xz</code>; it
need not be unpacked) and write it with Raspberry Pi Imager (&ldquo;Use custom&rdquo;, no settings
of its own) or balenaEtcher. On Linux, with the block map beside it:</p>
<pre>sudo bmaptool copy {image} /dev/sdX</pre>
<p>Then edit <code>thicket.toml</code> on the card&rsquo;s first partition: a device whose mesh has
no passphrase keeps its radio off.</p>
<h2>Check what you downloaded</h2>
<pre>sha256sum --check --ignore-missing {sums}</pre>
{how}
<p>For programs: <a href="index.json">index.json</a>.</p>
</body>
</html>
"""

_HOW = """\
<p>That the list of checksums is its publisher&rsquo;s: with <code>root.pem</code>, the root
certificate that the publisher gave you by another way than this one,</p>
<pre>openssl cms -verify -inform DER -in {cms} -CAfile root.pem -purpose any -out {sums}</pre>
<p>writes the list that was signed.</p>
"""


def text(said: Index, signer: str | None) -> bytes:
    """Return the page.

    :param signer: who signs the release.
    """
    images = [file for file in said.files if file.kind == index.IMAGE]
    several = len(said.boards) > 1
    page = _PAGE.format(
        version=escape(said.version),
        date=said.date[:10],
        epoch=said.epoch,
        commit=escape(said.commit),
        signed=f"Signed by {escape(signer)}." if signer else "It is not signed.",
        boards="\n".join(_board(said, board) for board in said.boards),
        board=" BOARD=BOARD" if several else "",
        image=escape(images[0].name) if len(images) == 1 else "IMAGE.img.xz",
        sums=sums.FILE,
        how=_HOW.format(cms=signature.FILE, sums=sums.FILE) if signer else "",
    )
    return page.encode()


def _board(said: Index, board: str) -> str:
    order = list(_KINDS)
    files = sorted(
        (file for file in said.files if file.board == board),
        key=lambda file: (order.index(file.kind), file.name),
    )
    rows = "\n".join(_row(file) for file in files)
    return (
        f"<h2>{escape(board)}</h2>\n<p>{escape(BOARDS.get(board, 'A board of your own'))}.</p>\n"
        f"<table>\n<tr><th>file</th><th>size</th><th>what</th></tr>\n{rows}\n</table>"
    )


def _row(file: File) -> str:
    name, what = escape(file.name), _KINDS[file.kind]
    if file.since:
        what += f", for those that run {escape(file.since)}"
    if file.unpacked:
        what += f" of {human(file.unpacked)} or more"
    return (
        f'<tr><td><a href="{name}">{name}</a></td><td class="size">{human(file.size)}</td>'
        f"<td>{what}</td></tr>"
    )
