# SPDX-License-Identifier: Apache-2.0
"""``make fuzz``: look for inputs that break a parser, guided by coverage (Atheris, libFuzzer).

Each target runs for some seconds, beginning with its kept corpus and with what earlier runs on this
machine found (in the cache). What breaks an invariant is left in the cache as ``crash-...``, and
the exit status is 1; put such a file into ``corpus/TARGET`` under a name that says what it was, and
every test run tries it from then on. ``--keep`` reduces what was found to few inputs that together
reach as much, and puts them into the tree.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from hashlib import sha1
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1] / "helpers"))

from limits import watched
from targets import TARGETS

from host.cache import cache_root

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"

KEPT = 1024
"""Bytes of the longest input that is kept in the tree."""

MEMORY = 768
"""MiB that the process may have."""


def cache() -> Path:
    """Return where found inputs are collected on this machine."""
    return cache_root() / "fuzz"


def library() -> Path:
    """Return the folder with Atheris, which is installed when it is missing."""
    wanted = (HERE / "requirements.txt").read_bytes() + sys.version.encode()
    folder = cache() / f"atheris-{sha1(wanted, usedforsecurity=False).hexdigest()[:12]}"
    if not folder.is_dir():
        print(f"installing Atheris into {folder}", file=sys.stderr)
        cache().mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=cache()))
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(new)]
        only = ["--disable-pip-version-check", "--only-binary", ":all:", "--require-hashes"]
        if subprocess.run(
            [*command, *only, "-r", str(HERE / "requirements.txt")], check=False
        ).returncode:
            shutil.rmtree(new)
            raise SystemExit(
                "no Atheris for this Python (it comes built for 3.11 to 3.13): set PYTHON to one "
                "of these, or fuzz on another machine. `make test-unit` tries the kept inputs"
            )
        new.chmod(0o755)
        new.rename(folder)
    return folder


def fuzz(name: str, arguments: list[str]) -> None:
    """Become the fuzzer of one target: never returns."""
    sys.path.append(str(library()))
    import atheris

    target = TARGETS[name]
    with atheris.instrument_imports(include=["thicket", "tomllib", "firmware.releases"]):
        one = target.make()
        seeds = list(target.seeds())
    del seeds  # what making them has imported is instrumented now

    # libFuzzer runs this through a shell again when it reduces a corpus
    again = shlex.join([sys.executable, __file__, "--fuzz", name, "--"])
    atheris.Setup([again, *arguments], watched(one))
    atheris.Fuzz()


def sow(name: str, folder: Path) -> None:
    """Put the kept corpus and the seeds of a target into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [path.read_bytes() for path in (CORPUS / name).glob("*")]
    for data in (*kept, *TARGETS[name].seeds()):
        (folder / sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)


def start(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the fuzzer in a process of its own."""
    command = [sys.executable, __file__, "--fuzz", name, "--", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")


def look(name: str, seconds: int) -> bool:
    """Fuzz a target for so long and print what came of it; False when something was found."""
    work, found = cache() / name, cache() / "found" / name
    sow(name, work)
    found.mkdir(parents=True, exist_ok=True)
    words = work.parent / f"{name}.dict"
    quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in TARGETS[name].words)
    words.write_text("".join(f'"{word}"\n' for word in quoted))
    done = start(
        name,
        *([f"-dict={words}"] if TARGETS[name].words else []),
        f"-max_total_time={seconds}",
        f"-max_len={TARGETS[name].longest}",
        f"-rss_limit_mb={MEMORY}",
        "-timeout=60",
        "-print_final_stats=1",
        "-verbosity=1",
        f"-artifact_prefix={found}/",
        str(work),
    )
    facts = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
    reached = re.findall(r"\bcov: (\d+) ft: (\d+) corp: (\d+)/", done.stderr)
    cover, features, kept = reached[-1] if reached else ("?", "?", "?")
    executions = facts.get("number_of_executed_units", "?")
    verdict = "nothing" if not done.returncode else "see below"
    print(
        f"| {name} | {seconds} | {executions} | {cover} | {features} | {kept} "
        f"| {facts.get('peak_rss_mb', '?')} | {verdict} |",
        flush=True,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if not re.match(r"#\d+\s|INFO:", line)]
        print(done.stdout[-6000:], *said[-20:], f"it is in {found}", sep="\n", file=sys.stderr)
    return not done.returncode


def keep(name: str) -> None:
    """Reduce what is known of a target to a small corpus in the tree.

    Long ones are left out, the seeds are tried anyway. Inputs whose name is not a digest were put
    there by a person and stay.
    """
    sow(name, cache() / name)
    with tempfile.TemporaryDirectory() as new, tempfile.TemporaryDirectory() as short:
        for path in (cache() / name).iterdir():
            if path.stat().st_size <= KEPT:
                shutil.copy(path, short)
        done = start(
            name,
            "-merge=1",
            f"-max_len={TARGETS[name].longest}",
            new,
            short,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        place = CORPUS / name
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob("*"):
            if re.fullmatch(r"[0-9a-f]{40}", old.name):
                old.unlink()
        for path in Path(new).iterdir():
            data = path.read_bytes()
            (place / sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
    sizes = [path.stat().st_size for path in place.iterdir()]
    print(f"{name}: {len(sizes)} inputs, {sum(sizes)} bytes")


def main() -> int:
    """Do what the command line says."""
    if sys.argv[1:2] == ["--fuzz"]:
        fuzz(sys.argv[2], sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--keep", action="store_true", help="put what was found into the tree")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    for name in names:
        if name not in TARGETS:
            parser.error(f"{name} is not one of {', '.join(TARGETS)}")
    library()
    good = True
    if options.seconds:
        print(
            "| target | seconds | executions | branches | features | inputs | MiB | found |\n"
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            flush=True,
        )
        for name in names:
            good = look(name, options.seconds) and good
    if options.keep:
        for name in names:
            keep(name)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
