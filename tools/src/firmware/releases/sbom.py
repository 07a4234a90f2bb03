# SPDX-License-Identifier: Apache-2.0
"""Bills of materials: what software is in an image, as CycloneDX 1.6 (JSON).

Of an image that Buildroot built, Buildroot's own program makes it. Others are made here, of a list
of components. The same contents make the same bytes: serial number and time are made of these.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from firmware.releases.errors import ReleaseError

SPECIFICATION = "1.6"

Json = dict[str, object]

_EXPRESSION = re.compile(
    r"\(?[A-Za-z0-9.+-]+\)?(?: (?:AND|OR|WITH) \(?[A-Za-z0-9.+-]+\)?)*", re.ASCII
)


class Component(NamedTuple):
    """A piece of software in an image.

    :ivar kind: ``library``, ``application`` or ``operating-system``.
    :ivar version: empty where it is not known.
    :ivar url: its package URL, as ``pkg:pypi/smbus2@0.6.0``.
    :ivar licence: an SPDX expression, or a name; empty where it is not known.
    :ivar hashes: SHA-256 (hex) of the files that it is distributed as.
    """

    kind: str
    name: str
    version: str
    url: str
    licence: str = ""
    hashes: tuple[str, ...] = ()


def made(
    name: str, version: str, licence: str, components: Sequence[Component], date: str
) -> bytes:
    """Return the bill of an image.

    :param name: the image's.
    :param licence: its own, SPDX.
    :param date: UTC, as ``2026-11-24T12:00:00Z``.
    """
    listed = sorted(set(components))
    own = f"{name}@{version}"
    document: Json = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": "",
        "version": 1,
        "metadata": {
            "timestamp": date,
            "component": {
                "type": "firmware",
                "bom-ref": own,
                "name": name,
                "version": version,
                "licenses": _licences(licence),
            },
        },
        "components": [_component(one) for one in listed],
        "dependencies": [{"ref": own, "dependsOn": [one.url for one in listed]}],
    }
    return _numbered(document)


def normalised(data: bytes, date: str) -> bytes:
    """Return a bill of another program with a serial number and time that are made of it.

    :param date: as for :func:`made`.
    :raises ReleaseError: it is no CycloneDX.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ReleaseError(f"the bill of materials is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("bomFormat") != "CycloneDX":
        raise ReleaseError("the bill of materials is not CycloneDX")
    document["serialNumber"] = ""
    metadata = document.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise ReleaseError("the bill of materials is not CycloneDX: its metadata are no object")
    metadata["timestamp"] = date
    return _numbered(document)


def _numbered(document: Json) -> bytes:
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}"
    return (json.dumps(document, indent=1) + "\n").encode()


def _component(one: Component) -> Json:
    found: Json = {"type": one.kind, "bom-ref": one.url, "name": one.name}
    if one.version:
        found["version"] = one.version
    if one.licence:
        found["licenses"] = _licences(one.licence)
    found["purl"] = one.url
    if one.hashes:
        # Of the files of this version, of which an installer takes one.
        found["externalReferences"] = [
            {
                "type": "distribution",
                "url": one.url,
                "hashes": [{"alg": "SHA-256", "content": each} for each in sorted(one.hashes)],
            }
        ]
    return found


def _licences(licence: str) -> list[Json]:
    if _EXPRESSION.fullmatch(licence):
        return [{"expression": licence}]
    return [{"license": {"name": licence}}]


def components(data: bytes) -> int:
    """Return how many components a bill has."""
    document = cast(Mapping[str, Sequence[object]], json.loads(data))
    return len(document.get("components", ()))
