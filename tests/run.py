# SPDX-License-Identifier: Apache-2.0
"""Runs the tests: every part, whatever the others say, and one report at the end.

    run.py [lint] [unit] [mesh]     these parts; none named means all three
    run.py soak                     what takes long, for THICKET_SOAK seconds each
    TESTS='FILE FILE::TEST ...'     instead, the tests of these files alone
    PYTEST='-x -k name'             goes to pytest as it is
    --rounds N                      N times, shuffled, each under another load (see LOADS)

A part that fails does not keep the next one from running. The report says what passed, failed and
was skipped and why, how long each part and the slowest tests took, and which line runs again what
failed. JUnit files are in ``$THICKET_CACHE/test``. The status is 0 when everything passed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from host.cache import cache_root
from host.child import tied

TOP = Path(__file__).resolve().parents[1]
PARTS = ("lint", "unit", "mesh")
SOAK = "soak"
SLOWEST = 10
PREPARE = ("-m", "meshlab.image", "--card", "standin", "--card", "standin-rpi64")
"""Makes the cards that tests on nodes start, in the order in which they are needed."""
NAMED = 12
"""Most failed tests that the line for running them again names; beyond, it names their files."""

# pytest's exit codes (docs: reference/exit-codes): tests failed; no test was collected.
FAILED, NO_TESTS = 1, 5
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Case:
    """One test of a JUnit file."""

    name: str
    """As pytest takes it: FILE::TEST."""
    outcome: str
    """passed, failed or skipped."""
    seconds: float
    words: str = ""
    """Why it was skipped, or the first line of its failure."""


@dataclass
class Part:
    """What came of one part."""

    name: str
    cases: list[Case] = field(default_factory=list)
    seconds: float = 0.0
    fault: str = ""
    """What was wrong beside failed tests: it could not start, ended in the middle ..."""

    def count(self, outcome: str) -> int:
        return sum(case.outcome == outcome for case in self.cases)

    @property
    def passed(self) -> bool:
        return not self.fault and not self.count("failed")


def workers() -> int:
    """Return how many unit tests, or meshes, run at a time.

    Both wait for a part of their time: with more than there are cores, these are busy.
    """
    return 2 * len(os.sched_getaffinity(0))


# -- reading what was written


def cases_of(junit: Path) -> list[Case]:
    """Return the tests of a JUnit file (family xunit1). Raises ``ValueError`` when it is none."""
    try:
        root = ET.parse(junit).getroot()  # pytest has just written it
    except (OSError, ET.ParseError) as error:
        raise ValueError(f"{junit} cannot be read: {error}") from error
    return [_case(element) for element in root.iter("testcase")]


def _case(element: ET.Element) -> Case:
    # --dist loadgroup writes @GROUP behind a test's name.
    name = re.sub(r"@[\w-]+$", "", element.get("name") or "")
    classname = element.get("classname") or ""
    # Not "file": that is where a decorator stands. A file that cannot be collected has its module
    # for a name and no class.
    words = (classname or name).split(".")
    file, inside = f"{'/'.join(words)}.py", [name] if classname else []
    for length in range(len(words), 0, -1):
        path = "/".join(words[:length]) + ".py"
        if (TOP / path).is_file():
            file, inside = path, [*words[length:], *inside]
            break
    outcome, why = "passed", ""
    for child in element:
        if child.tag in ("failure", "error"):
            outcome, why = "failed", child.get("message") or ""
        elif child.tag == "skipped" and outcome == "passed":
            outcome, why = "skipped", child.get("message") or ""
    return Case(
        "::".join([file, *inside]),
        outcome,
        float(element.get("time") or 0),
        why.strip().partition("\n")[0],
    )


# -- running


@contextlib.contextmanager
def compiled(environment: dict[str, str]) -> Iterator[None]:
    """Have the unit tests compiled meanwhile, once for all workers (conftest.py keeps it)."""
    words = ["-m", "not lab", "-q", "--collect-only", "-p", "no:cacheprovider"]
    with subprocess.Popen(
        tied([sys.executable, "-m", "pytest", *words]),
        cwd=TOP,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ):
        yield


@contextlib.contextmanager
def prepared(environment: dict[str, str]) -> Iterator[None]:
    """Have the cards that tests start made meanwhile, in the cache.

    One has a kernel of another architecture: minutes of a compiler, for which all who need it would
    wait. What cannot be made is told by the tests that need it.
    """
    with subprocess.Popen(
        tied([sys.executable, *PREPARE]),
        cwd=TOP,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        try:
            yield
        finally:
            running.terminate()  # stages that are finished stay


def run_lint(environment: dict[str, str]) -> Part:
    """Run ``bin/lint``, each of whose checks is a case."""
    part = Part("lint")
    command = [str(TOP / "bin" / "lint"), sys.executable]
    with subprocess.Popen(
        command, cwd=TOP, env=environment, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        begun = time.monotonic()
        for line in running.stdout:
            print(line, end="", flush=True)
            word, _, name = line.rstrip().partition(" ")
            if word in ("ok", "FAIL") and name:
                outcome = "passed" if word == "ok" else "failed"
                now = time.monotonic()
                part.cases.append(Case(f"bin/lint: {name.strip()}", outcome, now - begun))
                begun = now
    if running.returncode and not part.count("failed"):
        part.fault = f"bin/lint ended with status {running.returncode}"
    return part


def run_pytest(
    name: str,
    words: Sequence[str],
    junit: Path,
    environment: dict[str, str],
    *,
    none_is_right: bool,
) -> Part:
    """Run pytest with ``words``; where no test fits, that is a fault unless ``none_is_right``."""
    part = Part(name)
    junit.unlink(missing_ok=True)
    junit.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pytest", *words]
    command += [
        "-o",
        "junit_family=xunit1",
        "-o",
        f"junit_suite_name={name}",
        f"--junitxml={junit}",
    ]
    status, interrupted = _ended(command, environment)
    try:
        part.cases = cases_of(junit)
    except ValueError as error:
        part.fault = (
            INTERRUPTED if interrupted else f"pytest ended with status {status}, and {error}"
        )
        return part
    if status == NO_TESTS:
        part.fault = "" if none_is_right else "there is no such test"
    elif interrupted:
        part.fault = INTERRUPTED
    elif status not in (0, FAILED):
        part.fault = f"pytest ended with status {status}"
    elif status == FAILED and not part.count("failed"):
        part.fault = "pytest says that something failed and not what: see above"
    return part


def _ended(command: Sequence[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Run a program to its end; return its status, and whether Ctrl-C was pressed meanwhile.

    The terminal sends Ctrl-C to the program as well, which then still writes what it knows.
    """
    interrupted = False
    with subprocess.Popen(command, cwd=TOP, env=environment) as running:
        while True:
            try:
                return running.wait(), interrupted
            except KeyboardInterrupt:
                if interrupted:
                    running.kill()
                interrupted = True


def pytest_words(part: str, tests: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return the arguments of pytest for the part ``unit``, ``mesh`` or ``soak``."""
    marks = {"unit": "not lab", "mesh": "lab", SOAK: SOAK}
    if part == "unit":
        words = ["-q", "-n", str(workers()), "--dist", "worksteal"]
    else:
        # One line for each test: it takes seconds, of which a dot would say little.
        words = ["-v", "-n", str(workers()), "--dist", "loadgroup"]
    words += ["-m", marks[part]]
    if part != "unit" and not tests:
        tests = ["tests/mesh", "tests/firmware", *(["app/tests"] if part == SOAK else [])]
    return [*words, *tests, *options]


@contextlib.contextmanager
def timed(part: str) -> Iterator[Callable[[], float]]:
    """Say that a part begins; the function that is handed out tells how long it has taken."""
    print(f"\n== {part} ==", flush=True)
    begun = time.monotonic()
    yield lambda: time.monotonic() - begun


def run(
    parts: Sequence[str],
    tests: Sequence[str],
    options: Sequence[str],
    folder: Path,
    environment: dict[str, str],
) -> list[Part]:
    """Run the parts one after the other, whatever the one before came to."""
    done: list[Part] = []
    # Who names tests needs little of what all of them need.
    everything = not tests and not options
    with contextlib.ExitStack() as beside:
        if everything and "mesh" in parts:
            beside.enter_context(prepared(environment))
        for name in parts:
            with timed(name) as seconds:
                if name == "lint":
                    # It leaves a core idle.
                    compiling = "unit" in parts and not tests
                    with compiled(environment) if compiling else contextlib.nullcontext():
                        part = run_lint(environment)
                else:
                    part = run_pytest(
                        name,
                        pytest_words(name, tests, options),
                        folder / f"{name}.xml",
                        environment,
                        none_is_right=bool(tests or options),
                    )
                part.seconds = seconds()
            done.append(part)
            if part.fault == INTERRUPTED:
                break
    if not any(part.cases or part.fault for part in done):
        done[-1].fault = "there is no such test"
    return done


# -- telling


def duration(seconds: float) -> str:
    """Return a time as people say it: 8.4 s, 12 min 5 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def again(failed: Sequence[Case]) -> str:
    """Return the line that runs what failed again."""
    names = [case.name for case in failed if not case.name.startswith("bin/lint")]
    if not names:
        return "make lint"
    if len(names) > NAMED:
        names = sorted({name.partition("::")[0] for name in names})
    words = " ".join(shlex.quote(name) for name in names)
    # make expands what stands in a variable once more.
    return f"make test TESTS={shlex.quote(words).replace('$', '$$')}"


def report(parts: Sequence[Part], out: TextIO) -> None:
    """Print what came of the parts, and as the last line the sum."""
    cases = [case for part in parts for case in part.cases]
    failed = [case for case in cases if case.outcome == "failed"]
    if slow := sorted(cases, key=lambda case: -case.seconds)[:SLOWEST]:
        print("\nThe slowest:", file=out)
        for case in slow:
            print(f"{case.seconds:8.1f} s  {case.name}", file=out)
    if reasons := Counter(case.words for case in cases if case.outcome == "skipped"):
        print("\nSkipped:", file=out)
        for reason, count in reasons.most_common():
            print(f"{count:6}  {reason or 'without a reason'}", file=out)
    if failed:
        print("\nFailed:", file=out)
        for case in failed:
            print(
                f"  {case.name}" + (f"\n      {case.words[:160]}" if case.words else ""), file=out
            )
    print(f"\n{'part':8}{'passed':>8}{'failed':>8}{'skipped':>9}   time", file=out)
    for part in parts:
        passed, lost, skipped = (part.count(word) for word in ("passed", "failed", "skipped"))
        print(
            f"{part.name:8}{passed:8}{lost:8}{skipped:9}   {duration(part.seconds)}"
            + (f"   {part.fault}" if part.fault else ""),
            file=out,
        )
    if failed:
        print(f"\nWhat failed, again:\n    {again(failed)}", file=out)
    # A part that broke without naming a test counts as one that failed.
    lost = len(failed) + sum(bool(part.fault) for part in parts)
    passed, skipped = (sum(part.count(word) for part in parts) for word in ("passed", "skipped"))
    print(f"\ntests: {passed} passed, {lost} failed, {skipped} skipped", file=out, flush=True)


# -- loads, under which everything has to pass as well


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Leave one core to the tests."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def second_copy() -> Iterator[None]:
    """Run the unit tests over and over beside the tests."""
    words = ["-m", "not lab", "-q", "-n", str(workers()), "-p", "no:cacheprovider"]
    with _over_and_over(
        lambda: subprocess.Popen(
            tied([sys.executable, "-m", "pytest", *words]),
            cwd=TOP,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    ):
        yield


@contextlib.contextmanager
def stalled_disk() -> Iterator[None]:
    """Write to the disk that has the cache, each time down to the medium."""
    target = cache_root() / "test" / "stall"
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["dd", "if=/dev/zero", f"of={target}", "bs=1M", "count=256", "oflag=dsync"]
    try:
        with _over_and_over(
            lambda: subprocess.Popen(
                tied(command),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        ):
            yield
    finally:
        target.unlink(missing_ok=True)


@contextlib.contextmanager
def _over_and_over(start: Callable[[], subprocess.Popen[bytes]]) -> Iterator[None]:
    """Start a program again whenever it has ended; end it with its children afterwards."""
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set():
            running = start()
            while running.poll() is None:
                if over.wait(0.2):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(running.pid, 9)
                    running.wait()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


LOADS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "nothing beside it": contextlib.nullcontext,
    "a second copy of the unit tests beside it": second_copy,
    "one core": one_core,
    "a disk that is kept busy": stalled_disk,
}


def rounds(
    count: int, parts: Sequence[str], tests: Sequence[str], options: Sequence[str], folder: Path
) -> list[list[Part]]:
    """Run everything ``count`` times, each time in another order, with other hashes and loads."""
    done: list[list[Part]] = []
    lines: list[str] = []
    for number in range(1, count + 1):
        words, load = list(LOADS.items())[number % len(LOADS)]
        seed = random.randrange(1 << 32)
        shuffled = [*options, "--random-order", f"--random-order-seed={seed}"]
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        print(f"\n==== round {number} of {count}: {words}, seed {seed} ====", flush=True)
        with load():
            done.append(run(parts, tests, shuffled, folder / f"round-{number}", environment))
        report(done[-1], sys.stdout)
        failed = sum(part.count("failed") + bool(part.fault) for part in done[-1])
        took = duration(sum(part.seconds for part in done[-1]))
        lines.append(f"{number:6}  {failed:3} failed in {took}: {words}, seed {seed}")
        if any(part.fault == INTERRUPTED for part in done[-1]):
            break
    print("\nRounds:\n" + "\n".join(lines))
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    # A shell without job control ignores SIGINT in what it starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="run.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help="N times, under load")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - {*PARTS, SOAK}:
        parser.error(f"there is no part {min(unknown)}; there are {', '.join(PARTS)}")
    tests = shlex.split(os.environ.get("TESTS", ""))
    options = shlex.split(os.environ.get("PYTEST", ""))
    for test in tests:
        if not (TOP / test.partition("::")[0]).exists():
            parser.error(f"TESTS={test}: there is no {test.partition('::')[0]} in {TOP}")
    # Whoever names tests does not ask for the style of all files.
    parts = given.parts or [part for part in PARTS if part != "lint" or not tests]
    folder = cache_root() / "test"
    if given.rounds:
        done = rounds(given.rounds, parts, tests, options, folder)
        return 0 if all(part.passed for one in done for part in one) else 1
    found = run(parts, tests, options, folder, dict(os.environ))
    report(found, sys.stdout)
    print(f"JUnit: {folder}", file=sys.stderr)
    return 0 if all(part.passed for part in found) else 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
