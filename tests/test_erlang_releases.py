# SPDX-License-Identifier: Apache-2.0
"""bin/erlang-releases: other releases of Erlang in the cache, whole or not at all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from patience import PATIENCE

TOP = Path(__file__).resolve().parents[1]

# In place of mmdebstrap: notes its arguments and makes a tree whose erl prints a release's number.
MMDEBSTRAP = """#!/bin/sh
echo "$*" >>"$0.log"
if [ -e "$0.fails" ]; then
    echo 'I: one'; echo 'E: no route to the mirror'; echo 'E: failed'
    exit 25
fi
while [ "${1#--}" != "$1" ]; do shift; done
usr=$2/usr/lib
mkdir -p "$usr/x86_64-linux-gnu" "$usr/erlang/erts-1/bin" "$usr/elixir/bin" "$2/usr/share/doc"
touch "$usr/x86_64-linux-gnu/ld-linux-x86-64.so.2"
case $1 in trixie) number=27 ;; *) number=29 ;; esac
[ ! -e "$0.newer" ] || number=30
program=$usr/erlang/erts-1/bin/erlexec
printf '#!/bin/sh\\n[ -e "$ROOTDIR/erts-1" ] && echo %s\\n' "$number" >"$program"
[ ! -e "$0.broken" ] || printf '#!/bin/sh\\necho no good; exit 1\\n' >"$program"
chmod 755 "$program"
"""
APT_GET = """#!/bin/sh
[ ! -e "$0.none" ] || exit 0
echo 'Debian/Debian-Security http://one.example/debian-security/'
echo 'Other/Other http://two.example/other/'
echo 'Debian/Debian http://one.example/debian/'
"""


class Machine:
    """Programs and a cache of a test's own."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.cache = folder / "bin", folder / "cache"
        self.bin.mkdir()
        for name, text in (("mmdebstrap", MMDEBSTRAP), ("apt-get", APT_GET)):
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def run(self, **variables: str) -> str:
        """Run it; it must end well. Returns what it said."""
        environment = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        environment.pop("THICKET_DEBIAN_MIRROR", None)
        environment |= {"THICKET_CACHE": str(self.cache), **variables}
        done = subprocess.run(
            [TOP / "bin/erlang-releases"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        return done.stderr

    def number(self, release: int) -> str:
        erl = self.cache / "erlang" / str(release) / "bin/erl"
        return subprocess.run([erl], capture_output=True, text=True, check=True).stdout.strip()

    def fetched(self) -> list[str]:
        """The arguments of each run of mmdebstrap."""
        log = self.bin / "mmdebstrap.log"
        return log.read_text().splitlines() if log.exists() else []

    def there(self) -> set[str]:
        return {path.name for path in (self.cache / "erlang").iterdir()} - {".lock"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_both_are_unpacked_once_from_the_mirror_that_apt_uses(machine: Machine) -> None:
    machine.run()
    assert machine.there() == {"27", "29"}
    assert (machine.number(27), machine.number(29)) == ("27", "29")
    assert [line.split()[-3] for line in machine.fetched()] == ["trixie", "sid"]
    assert {line.split()[-1] for line in machine.fetched()} == {"http://one.example/debian/"}
    made = machine.cache / "erlang/27"
    assert {path.name for path in made.iterdir()} == {"bin", "elixir", "erlang", "lib", ".recipe"}
    assert machine.run() == ""
    assert len(machine.fetched()) == 2


def test_one_that_was_moved_still_finds_itself(machine: Machine) -> None:
    machine.run()
    (machine.cache / "erlang").rename(machine.cache / "moved")
    (machine.cache / "erlang").symlink_to("moved")
    assert machine.number(29) == "29"


def test_a_mirror_can_be_named(machine: Machine) -> None:
    machine.run(THICKET_DEBIAN_MIRROR="http://three.example/debian")
    assert {line.split()[-1] for line in machine.fetched()} == {"http://three.example/debian"}


def test_without_the_network_each_says_why_and_the_next_run_tries_again(machine: Machine) -> None:
    fails = machine.bin / "mmdebstrap.fails"
    fails.touch()
    said = machine.run()
    assert said.count("left out of the tests") == 2
    assert machine.there() == {"27.why", "29.why"}
    why = (machine.cache / "erlang/27.why").read_text()
    assert why == "it cannot be fetched from Debian's suite trixie: E: no route to the mirror\n"
    fails.unlink()
    machine.run()
    assert machine.there() == {"27", "29"}


def test_a_suite_that_went_on_says_so(machine: Machine) -> None:
    (machine.bin / "mmdebstrap.newer").touch()
    machine.run()
    assert machine.there() == {"27.why", "29.why"}
    why = (machine.cache / "erlang/29.why").read_text()
    assert why == "Debian's suite sid has OTP 30 by now\n"


def test_one_that_does_not_run_is_not_there(machine: Machine) -> None:
    (machine.bin / "mmdebstrap.broken").touch()
    machine.run()
    assert machine.there() == {"27.why", "29.why"}
    assert (machine.cache / "erlang/29.why").read_text() == "it does not run here: no good\n"


def test_a_machine_whose_apt_knows_no_debian(machine: Machine) -> None:
    (machine.bin / "apt-get.none").touch()
    machine.run()
    assert machine.fetched() == []
    assert "no mirror of Debian" in (machine.cache / "erlang/27.why").read_text()


def test_another_recipe_makes_it_anew(machine: Machine) -> None:
    machine.run()
    (machine.cache / "erlang/27/.recipe").write_text("older\n")
    machine.run()
    assert [line.split()[-3] for line in machine.fetched()] == ["trixie", "sid", "trixie"]
    assert machine.number(27) == "27"
