# SPDX-License-Identifier: Apache-2.0
"""``docs/configuration.md`` and the image's ``thicket.toml``, made from the schema.

``python -m firmware.document FOLDER`` writes both into the source tree whose root is FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import wrap
from typing import Any, Final

from thicket.base.fields import Key
from thicket.base.files import MAX_FILE_BYTES
from thicket.config.schema import MAX_APPLICATIONS, MAX_DEPTH, SECTIONS
from thicket.config.template import default_of, template

_INTRO: Final = f"""\
<!-- Made by `python -m firmware.document .` from the sections' classes; do not edit. -->
# Configuration

A node has one configuration file, `thicket.toml`, on the first partition of its card (FAT,
readable by any computer). Put it there before the first boot. The file is
[TOML](https://toml.io/en/v1.0.0): sections in brackets, `key = value` lines below them, text in
quotes. At most {MAX_FILE_BYTES // 1024} KiB; Windows line ends and a byte order mark do no harm.

A node needs `mesh.passphrase`: without one its radio stays off (unless `mesh.security` is
`"open"`), and its status says so. To join a cluster it also needs the fleet's root certificate,
`trust.root` (unless `cluster.security` is `"cookie"`). All other keys are optional, with the
defaults below.

```toml
[mesh]
id = "greenhouse"
passphrase = "a long one that nobody guesses"

[cluster]
cookie = "another one"

[access]
ssh_keys = [
  "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI... anna@laptop",
  "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI... ben@desk",
]
```

## Which file counts

1. `/etc/thicket/thicket.toml`: at boot a copy of the boot partition's file; it lives in RAM.
2. `/data/thicket/thicket.toml`: only where the kernel command line names no boot partition
   (`thicket.boot=`).
3. `/usr/share/thicket/thicket.toml`: the image's defaults. They also fill in what the device's file
   does not set.

The first of them that exists is used as a whole, and checked as a whole: *every* fault is
reported, in `thicket status` and in the log, with the line, the key, the value (secrets masked) and
what is allowed. Text that is not TOML is shown with its line, a mark below the place, and what to
write instead:

```text
thicket.toml: line 30, column 11: a text stands in quotes: write country = "DE"
    country = DE
              ^
```

A mistyped key is a fault too. A file with a fault never locks a device out: the node uses the
**last good** configuration instead, which it keeps in `/data/thicket/last-good.toml`, and without
one the image's defaults. The same happens when the boot partition cannot be read, and when the file
is empty, cannot be read as a whole, or is gone although there was one before (a file that an editor
calls `thicket.toml.txt` is named). The last good configuration is kept with its checksum
(`last-good.sha256`); only a whole, valid file replaces it. To get the image's defaults, write a
file that holds only a comment (`# defaults`).

The faults are also in `report.txt` beside the file on the card, so that a node without a screen or
a network can explain itself on any computer ([node.md](node.md)).

## Changing it on a running node

```console
# thicket config show                          # what is in force, secrets masked
# thicket config set mesh.channel=6 mesh.id=greenhouse
# thicket config set mesh.passphrase           # asks for the value: not in the shell's history
# thicket config set firewall.allow=tcp/8080,udp/5000-5009      # a list; or as in the file:
# thicket config set 'firewall.allow=["tcp/8080", "udp/5000-5009"]'
# thicket config unset mesh.channel            # back to the default
# thicket config check new.toml                # all faults, or "is right"
# thicket config apply new.toml                # replace the whole file
# thicket reload                               # read the file again (as SIGHUP)
```

`set`, `unset` and `apply` check the result first and change nothing when it has a fault. Then they
replace the file on the boot partition (the partition is writable only for that moment; the new file
is complete on the disk before it takes the old one's name). The running daemon follows without a
restart: it joins the mesh again with its new values, makes the cluster's connections again when
`[address]` or `[cluster]` changed, and changes the rest in place. `[identity]` is read only when
the daemon starts, because the node's name is made from the identity.

## Settings of applications

A table `[application.NAME]` belongs to the application NAME and is passed to it unchanged. The node
checks only the types (texts, numbers, yes or no, lists and tables of these, up to {MAX_DEPTH}
levels; no dates) and the number of applications, at most {MAX_APPLICATIONS}. Values are never
shown, because they may be secret. The application checks the keys when it starts, and in `thicket
config check` and `apply` where it is installed. These commands name the applications that are not
installed.

```toml
[application.sensors]
interval = 30
pins = [4, 17]
```

## Keys
"""  # noqa: S608  # it is no SQL


def _allowed(key: Key[Any]) -> str:
    allowed = key.allowed
    return allowed[0].upper() + allowed[1:]


def reference() -> str:
    """The text of docs/configuration.md."""
    lines = [_INTRO]
    for section, cls in SECTIONS.items():
        lines += [f"### `[{section}]`", "", (cls.__doc__ or "").strip(), ""]
        for key in cls.keys().values():
            secret = " Secret: masked wherever it is shown." if key.secret else ""
            item = (
                f"- **`{key.name}`** (default `{default_of(key)}`): {key.help}{secret} "
                f"{_allowed(key)}."
            )
            lines += wrap(
                item, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def outputs(root: Path) -> dict[Path, str]:
    """Each file that is made from the schema, and its text."""
    return {
        root / "app/src/thicket/thicket.toml": template(),
        root / "docs/configuration.md": reference(),
    }


def main() -> None:
    """Write the files into the tree named on the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m firmware.document FOLDER")
    for path, text in outputs(Path(sys.argv[1])).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
