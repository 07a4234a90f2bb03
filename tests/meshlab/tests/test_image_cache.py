# SPDX-License-Identifier: Apache-2.0
"""Results appear whole or not at all, whatever happens to the process that makes them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from host.errors import CancelledError
from meshlab.image.cache import Cache, Digest
from meshlab.image.errors import ImageError

# A build in a process of its own: says when its first half is written, then waits to be killed, or
# goes on when the file `go` exists.
BUILDER = """
import sys, time
from pathlib import Path
from meshlab.image.cache import Cache

root, go = Path(sys.argv[1]), Path(sys.argv[2])

def make(directory):
    (directory / "first").write_text("half")
    (directory / "deep").mkdir()
    (directory / "deep" / "file").write_text("x")
    print("half", flush=True)
    while not go.exists():
        time.sleep(0.01)
    (directory / "second").write_text("whole")

def waiting(text):
    global told
    if not told:
        print("blocked", flush=True)
    told = True

told = False
print("waiting", flush=True)
path = Cache(root).obtain("part", "key", make, waiting=waiting)
print(path, flush=True)
"""


@pytest.fixture(autouse=True)
def no_builder_left() -> Iterator[None]:
    """A failed test leaves no builder that waits for ever."""
    yield
    for process in builders:
        process.kill()
        process.wait(PATIENCE)
    builders.clear()


builders: list[subprocess.Popen[str]] = []


def start(root: Path, go: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(root), str(go)], stdout=subprocess.PIPE, text=True
    )
    builders.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    return process


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_result_is_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    calls = []

    def make(directory: Path) -> None:
        calls.append(directory)
        assert list(directory.iterdir()) == []
        (directory / "file").write_text("text")

    first = cache.obtain("part", "key", make)
    assert cache.obtain("part", "key", make) == first
    assert (first / "file").read_text() == "text"
    assert len(calls) == 1
    assert cache.obtain("part", "other", make) != first
    assert len(calls) == 2
    assert cache.results() == [("part", first), ("part", tmp_path / "part" / "other")]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def make(directory: Path) -> None:
        (directory / "file").write_text("text")
        (directory / "closed").mkdir()
        (directory / "closed" / "file").write_text("text")
        (directory / "closed").chmod(0o500)
        raise ImageError("no")

    with pytest.raises(ImageError, match="no"):
        cache.obtain("part", "key", make)
    assert cache.find("part", "key") is None
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_build_leaves_a_usable_cache(tmp_path: Path, how: signal.Signals) -> None:
    never, go = tmp_path / "never", tmp_path / "go"
    process = start(tmp_path / "c", never)
    assert said(process) == "half"
    process.send_signal(how)
    process.wait(PATIENCE)
    cache = Cache(tmp_path / "c")
    assert cache.find("part", "key") is None
    # the next one starts from nothing, and leaves nothing of the first
    go.touch()
    second = start(tmp_path / "c", go)
    assert said(second) == "half"
    path = Path(said(second))
    assert second.wait(60) == 0
    assert sorted(p.name for p in path.iterdir()) == ["deep", "first", "second"]
    assert list((tmp_path / "c" / "tmp").iterdir()) == []


def test_what_a_killed_build_left_can_be_swept(tmp_path: Path) -> None:
    killed = start(tmp_path / "c", tmp_path / "never")
    assert said(killed) == "half"
    cache = Cache(tmp_path / "c")
    found: list[str] = []
    cache.sweep(found.append)
    assert found == [], "somebody is at work there"
    assert (tmp_path / "c/tmp/part.key/first").exists()
    killed.kill()
    killed.wait(60)
    cache.sweep(found.append)
    assert found == ["part"]
    assert list((tmp_path / "c" / "tmp").iterdir()) == []
    cache.sweep(found.append)
    assert found == ["part"]


def test_two_at_once_wait_for_each_other(tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = start(tmp_path / "c", go)
    assert said(first) == "half"
    second = start(tmp_path / "c", go)
    assert said(second) == "blocked"
    go.touch()
    path = said(first)
    # ... and finds what the first made, instead of making its own ("half").
    assert said(second) == path
    assert first.wait(60) == 0
    assert second.wait(60) == 0


def test_a_killed_holder_does_not_block_the_waiting(tmp_path: Path) -> None:
    never, go = tmp_path / "never", tmp_path / "go"
    first = start(tmp_path / "c", never)
    assert said(first) == "half"
    second = start(tmp_path / "c", go)
    assert said(second) == "blocked"
    go.touch()
    first.kill()
    first.wait(60)
    assert said(second) == "half"
    assert Path(said(second)).name == "key"
    assert second.wait(60) == 0


def test_waiting_can_be_seen_and_ended(tmp_path: Path) -> None:
    process = start(tmp_path / "c", tmp_path / "never")
    assert said(process) == "half"
    cache = Cache(tmp_path / "c")
    texts: list[str] = []
    cancelled = threading.Event()

    def waiting(text: str) -> None:
        texts.append(text)
        cancelled.set()

    try:
        with pytest.raises(CancelledError):
            cache.obtain("part", "key", lambda _: None, waiting=waiting, cancelled=cancelled)
    finally:
        process.kill()
        process.wait(PATIENCE)
    assert texts[0] == f"waiting for another build (process {process.pid})"


def fill(size: int) -> Callable[[Path], object]:
    return lambda directory: (directory / "file").write_bytes(b"x" * size)


def made_by_others(root: Path, *results: str, size: int = 1 << 20) -> None:
    """Have results made, the first the longest ago, by a process that has ended."""
    code = f"""if 1:
        from pathlib import Path
        from meshlab.image.cache import Cache
        for name in {results!r}:
            stage, key = name.split("/")
            Cache(Path({str(root)!r})).obtain(
                stage, key, lambda d: (d / "file").write_bytes(b"x" * {size}))
    """
    subprocess.run([sys.executable, "-c", code], check=True)
    long_ago = time.time() - 1000
    for number, name in enumerate(results):
        os.utime(root / name, (long_ago + number, long_ago + number))


def names(cache: Cache) -> list[str]:
    return [f"{stage}/{path.name}" for stage, path in cache.results()]


def test_what_was_used_longest_ago_goes_when_all_takes_too_much(tmp_path: Path) -> None:
    made_by_others(tmp_path, "kernel/k", *(f"card/{n}" for n in range(8)))
    cache = Cache(tmp_path, budget=13 << 19)
    assert cache.find("card", "0"), "being found counts as being used"
    cache.obtain("card", "new", fill(1 << 20))
    # The kernel is the oldest, but its stage takes least.
    assert names(cache) == ["card/0", "card/5", "card/6", "card/7", "card/new", "kernel/k"]


def test_some_stay_whatever_they_take(tmp_path: Path) -> None:
    made_by_others(tmp_path, *(f"card/{n}" for n in range(5)))
    cache = Cache(tmp_path, budget=0)
    cache.obtain("other", "new", fill(1 << 20))
    assert names(cache) == ["card/2", "card/3", "card/4", "other/new"]


def test_what_a_process_uses_is_not_thrown_away(tmp_path: Path) -> None:
    made_by_others(tmp_path, *(f"card/{n}" for n in range(6)))
    code = """if 1:
        import sys
        from pathlib import Path
        from meshlab.image.cache import Cache
        assert Cache(Path(sys.argv[1])).find("card", "0")
        print("found", flush=True)
        sys.stdin.read()
    """
    user = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert user.stdout is not None and user.stdin is not None
        assert user.stdout.readline() == b"found\n"
        os.utime(tmp_path / "card/0", (1, 1))
        cache = Cache(tmp_path, budget=0)
        cache.obtain("other", "a", fill(1))
        assert names(cache) == ["card/0", "card/3", "card/4", "card/5", "other/a"]
    finally:
        user.communicate(timeout=PATIENCE)
    cache.obtain("other", "b", fill(1))
    assert names(cache) == ["card/3", "card/4", "card/5", "other/a", "other/b"]


def test_a_stage_that_somebody_makes_is_left_alone(tmp_path: Path) -> None:
    made_by_others(tmp_path, *(f"part/{n}" for n in range(6)))
    builder = start(tmp_path, tmp_path / "go")
    assert said(builder) == "half"
    Cache(tmp_path, budget=0).obtain("other", "a", fill(1))
    assert names(Cache(tmp_path)) == ["other/a", *(f"part/{n}" for n in range(6))]


def test_a_full_disk_gets_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_by_others(tmp_path, "kernel/a", "kernel/b", *(f"card/{n}" for n in range(6)))
    size = (10 << 20) + 4096

    def usage(_: Path) -> Any:
        taken = sum(path.stat().st_size for path in tmp_path.rglob("file"))
        return shutil._ntuple_diskusage(size, taken, size - taken)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    cache = Cache(tmp_path)
    cache.obtain("other", "small", fill(1), room=2 << 20)
    assert len(names(cache)) == 9, "there was room"
    cache.obtain("other", "larger", fill(1), room=4 << 20)
    assert names(cache)[:4] == ["card/2", "card/3", "card/4", "card/5"]
    with pytest.raises(ImageError, match=r"'other'.* needs 1 GiB .* Make room"):
        cache.obtain("other", "huge", fill(1), room=1 << 30)
    assert names(cache) == ["card/5", "kernel/b", "other/larger", "other/small"]
    assert cache.find("card", "5"), "one of each stays"


def test_forget(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.obtain("part", "key", lambda directory: (directory / "f").touch())
    cache.obtain("other", "key", lambda _: None)
    cache.forget("part")
    cache.forget("never-made")
    assert [stage for stage, _ in cache.results()] == ["other"]
    assert list((tmp_path / "tmp").iterdir()) == []


def key(root: Path) -> str:
    return Digest("v1").files(root).key()


def test_the_key_follows_what_counts_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text("1")
    before = key(tmp_path)
    assert key(tmp_path) == before
    # by-products and times are no inputs
    (tmp_path / "a" / "__pycache__").mkdir()
    (tmp_path / "a" / "__pycache__" / "b.pyc").write_text("2")
    (tmp_path / "x.egg-info").mkdir()
    (tmp_path / "x.egg-info" / "PKG-INFO").write_text("2")
    os.utime(tmp_path / "a" / "b.py", (1, 1))
    assert key(tmp_path) == before
    seen = {before}
    (tmp_path / "a" / "b.py").write_text("2")
    seen.add(key(tmp_path))
    (tmp_path / "a" / "b.py").chmod(0o755)
    seen.add(key(tmp_path))
    (tmp_path / "a" / "b.py").rename(tmp_path / "a" / "c.py")
    seen.add(key(tmp_path))
    (tmp_path / "link").symlink_to("a")
    seen.add(key(tmp_path))
    assert len(seen) == 5


def test_words_are_not_run_together() -> None:
    assert Digest("ab", "c").key() != Digest("a", "bc").key()
    assert Digest("ab").key() != Digest("ab", "").key()
    assert Digest("a").words("b").key() == Digest("a", "b").key()
