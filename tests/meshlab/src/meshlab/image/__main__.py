# SPDX-License-Identifier: Apache-2.0
"""``python -m meshlab.image``: build the lab image, or look at what is in the cache."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from host import stop
from host.cache import cache_root
from host.errors import HostError
from meshlab.image import lab, standin
from meshlab.image.cache import Cache


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m meshlab.image",
        description="Build the lab image as far as it is not in the cache; print where it is.",
    )
    parser.add_argument("--cache", type=Path, default=cache_root(), help="cache folder")
    parser.add_argument("--list", action="store_true", help="show what the cache holds, and stop")
    parser.add_argument(
        "--refresh",
        action="append",
        default=[],
        metavar="STAGE",
        choices=lab.STAGES,
        help="make this stage anew, for newer packages of Debian: source, userland (repeatable)",
    )
    parser.add_argument(
        "--bundle",
        choices=standin.KINDS,
        help="make an unsigned update bundle of a stand-in card, print where it is, and stop",
    )
    parser.add_argument(
        "--card",
        action="append",
        choices=standin.KINDS,
        help="make a stand-in card, print where it is, and stop (repeatable)",
    )
    options = parser.parse_args(arguments)
    with stop.stopping():
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        cache = Cache(options.cache.absolute() / "images")
        if options.list:
            for stage, path in cache.results():
                size = sum(p.lstat().st_size for p in path.rglob("*") if not p.is_dir())
                print(f"{stage:10} {size / (1 << 20):8.1f} MiB  {path}")
            return 0
        for stage in options.refresh:
            cache.forget(stage)
        if options.bundle:
            print(standin.bundle(options.cache.absolute(), name=options.bundle))
            return 0
        if options.card:
            for name in options.card:
                print(standin.build(options.cache.absolute(), name=name), flush=True)
            return 0
        image = lab.build(options.cache.absolute())
    except HostError as error:
        print(f"thicket: {error}", file=sys.stderr)
        return 1
    except stop.Stopped as stopped:
        print(f"thicket: {stopped}; what was finished is kept", file=sys.stderr)
        return stopped.status
    print(image.description)
    print(f"kernel   {image.kernel}")
    print(f"root     {image.rootfs}")
    print(f"cmdline  {image.cmdline}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
