# SPDX-License-Identifier: Apache-2.0
"""Images on other machines: known by the hashes of their files, sent once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from meshlab.hosts.link import Link, LinkError
from meshlab.image.image_set import ImageSet
from meshlab.lab.real_parts import CardImage

UNUSED_DAYS = 30
"""Days after which a machine drops an image that no lab has used."""
_PIECE = 1 << 20


def digest_of(path: Path) -> str:
    """Return the hash that a file is known by."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(image: ImageSet | CardImage) -> dict[str, Path]:
    """Return the files of an image by what they are."""
    if isinstance(image, CardImage):
        return {"card": image.card}
    return {"kernel": image.kernel, "rootfs": image.rootfs}


def image_to_json(image: ImageSet | CardImage, digests: dict[str, str]) -> dict[str, Any]:
    """Return what an agent has to know of an image.

    :param digests: The hashes of its files, by what they are.
    """
    described: dict[str, Any] = {
        "name": image.name,
        "description": image.description,
        "files": digests,
    }
    if isinstance(image, CardImage):
        described["arch"] = image.arch
    else:
        described["cmdline"] = image.cmdline
    return described


def image_from_json(described: dict[str, Any], store: Path) -> ImageSet | CardImage:
    """Return the image whose files are in ``store``."""
    files = {what: store / Path(name).name for what, name in described["files"].items()}
    name, text = described["name"], described["description"]
    if "card" in files:
        return CardImage(name, files["card"], described["arch"], text)
    return ImageSet(
        name=name,
        kernel=files["kernel"],
        rootfs=files["rootfs"],
        cmdline=described["cmdline"],
        description=text,
    )


async def send(link: Link, digest: str, path: Path) -> None:
    """Send a file; it is there when this returns.

    :raises LinkError: when it cannot be stored there.
    """
    stream = link.open({"file": digest})
    packer = zlib.compressobj(1)
    try:
        with path.open("rb") as file:
            while data := file.read(_PIECE):
                await stream.write(await asyncio.to_thread(packer.compress, data))
        await stream.write(packer.flush())
        stream.finish()
        answer = json.loads(await stream.read_all() or b"null")
    except ConnectionError:
        answer = json.loads(await stream.read_all() or b"null")
    finally:
        stream.reset()
    if answer is None:
        raise LinkError("the connection ended while an image was sent")
    if "error" in answer:
        raise LinkError(answer["error"])
