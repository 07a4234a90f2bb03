# SPDX-License-Identifier: Apache-2.0
"""Which change makes which stage anew, and what a failure does to the other stages."""

from __future__ import annotations

import platform
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import PATIENCE

from host.errors import CancelledError
from host.progress import Progress
from meshlab.image import host, lab, standin, tree
from meshlab.image.cache import Cache
from meshlab.image.errors import ImageError
from thicket.update import bundle as bundles

PARTS = ("board", "overlay", "app/src/thicket", "app/pyproject.toml", "constraints.txt")


class Planned(lab.Builder):
    """A builder that makes nothing and remembers the key of every stage."""

    def __init__(
        self,
        tree: tree.Tree,
        cache: Cache,
        progress: Progress | None = None,
        extras: lab.Extras | None = None,
        board: str | None = None,
    ) -> None:
        super().__init__(tree, cache, progress or Progress(lambda text: None), extras, board)
        self.keys: dict[str, str] = {}

    def _obtain(self, name: str, key: str, what: str, make: Callable[[Path, Path], None]) -> Path:
        self.keys[name] = key
        path = self.cache.root / name / key
        path.mkdir(parents=True, exist_ok=True)
        if name == "source":
            for package in (self.recipe.kernel_source, self.recipe.firmware_package):
                (path / f"{package}_1_all.deb").touch()
        if name == "userland":
            (path / "root/usr/bin").mkdir(parents=True, exist_ok=True)
            link = path / "root/usr/bin/python3"
            if not link.is_symlink():
                link.symlink_to("python3.13")
        return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the parts of this tree that an image is made of."""
    source = tree.find().root
    root = tmp_path / "checkout"
    for part in (*PARTS, "package/hwsim-relay/src"):
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "hwsim-relay", "*.o")
            shutil.copytree(source / part, root / part, ignore=ignore)
        else:
            shutil.copy(source / part, root / part)
    return root


def keys(checkout: Path, tmp_path: Path, board: str | None = None) -> dict[str, str]:
    builder = Planned(tree.Tree(checkout), Cache(tmp_path / "cache"), board=board)
    builder.build()
    return builder.keys


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def append_new(path: Path, text: str) -> None:
    path.touch()
    append(path, text)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "nothing": (lambda root: None, set()),
    "the application": (
        lambda root: append(root / "app/src/thicket/daemon/daemon.py", "\n"),
        {"lab"},
    ),
    "its configuration": (
        lambda root: append(root / "app/src/thicket/thicket.toml", "# more\n"),
        {"lab"},
    ),
    "the overlay": (lambda root: append(root / "overlay/etc/init.d/rcS", "# more\n"), {"lab"}),
    "a new file of the overlay": (lambda root: (root / "overlay/etc/new").touch(), {"lab"}),
    "a by-product": (
        lambda root: append_new(root / "app/src/thicket/x.pyc", "x"),
        set(),
    ),
    "a kernel option": (
        lambda root: append(root / "board/qemu/linux/lab.config", "CONFIG_X=y\n"),
        {"kernel", "lab"},
    ),
    "a comment of a fragment": (
        lambda root: append(root / "board/common/linux/base.config", "# more\n"),
        set(),
    ),
    "the relay": (
        lambda root: append(root / "package/hwsim-relay/src/hwsim-relay.c", "\n"),
        {"relay", "lab"},
    ),
    "a Python package": (
        lambda root: replace(root / "constraints.txt", "smbus2==", "smbus2==9"),
        {"python", "lab"},
    ),
    "a version of something else": (
        lambda root: replace(root / "constraints.txt", "pytest==", "pytest==9"),
        set(),
    ),
    "a package of Debian": (
        lambda root: replace(root / "board/qemu/lab-image.toml", '"ethtool"', '"ethtool2"'),
        {"userland", "python", "lab"},
    ),
    "the kernel's source": (
        lambda root: replace(
            root / "board/qemu/lab-image.toml", "linux-source-6.12", "linux-source-6.13"
        ),
        {"source", "kernel", "lab"},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_anew_what_it_concerns(change: str, checkout: Path, tmp_path: Path) -> None:
    before = keys(checkout, tmp_path)
    assert set(before) == set(lab.STAGES)
    apply, expected = CHANGES[change]
    apply(checkout)
    after = keys(checkout, tmp_path)
    assert {name for name in after if after[name] != before[name]} == expected


STANDIN_CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "the lab's kernel": (
        lambda root: append(root / "board/qemu/linux/lab.config", "CONFIG_X=y\n"),
        set(),
    ),
    "the board's kernel": (
        lambda root: append(root / "board/rpi64/linux/arm64.config", "CONFIG_X=y\n"),
        {"kernel", "lab"},
    ),
    "what its kernel does not have": (
        lambda root: append(root / "board/rpi64/linux/downstream.config", "CONFIG_X=y\n"),
        set(),
    ),
    "a device tree": (
        lambda root: replace(root / "board/qemu/lab-image.toml", "-cm3-io3", "-cm3-io4"),
        {"kernel", "lab"},
    ),
    "a package of Debian": CHANGES["a package of Debian"],
}


@pytest.mark.parametrize("change", STANDIN_CHANGES)
def test_a_change_makes_anew_what_it_concerns_of_a_board(
    change: str, checkout: Path, tmp_path: Path
) -> None:
    before = keys(checkout, tmp_path, "rpi64")
    apply, expected = STANDIN_CHANGES[change]
    apply(checkout)
    after = keys(checkout, tmp_path, "rpi64")
    # Python's packages are byte code, and the lab image's for every board.
    assert {n for n in after if after[n] != before[n]} == expected - {"python"}


def test_two_architectures_share_the_source_and_python_s_packages(
    checkout: Path, tmp_path: Path
) -> None:
    own, other = keys(checkout, tmp_path), keys(checkout, tmp_path, "rpi64")
    assert set(lab.STAGES) - set(other) == {"python"}, "the lab image's are taken"
    assert {name for name in other if own[name] != other[name]} == set(other) - {"source"}


def test_a_tree_without_a_relay_still_has_an_image(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / "package")
    assert "relay" not in keys(checkout, tmp_path)


class Failing(Planned):
    """A builder whose userland fails while its kernel is being made."""

    def __init__(self, root: Path, cache: Path) -> None:
        super().__init__(tree.Tree(root), Cache(cache))
        self.started = threading.Event()
        self.cancelled = False

    def kernel(self) -> Path:
        try:
            self.runner.run(
                ["sh", "-c", "echo started; exec sleep 600"],
                self.cache.log("kernel"),
                what="compiling",
                on_line=lambda line: self.started.set(),
            )
        except CancelledError:
            self.cancelled = True
            raise
        raise AssertionError("sleep was not ended")

    def userland(self) -> Path:
        assert self.started.wait(PATIENCE)
        raise ImageError("no mirror")


def test_a_failure_ends_the_other_stages_and_is_the_one_told(
    checkout: Path, tmp_path: Path
) -> None:
    builder = Failing(checkout, tmp_path / "cache")
    with pytest.raises(ImageError, match="no mirror") as caught:
        builder.build()
    assert not isinstance(caught.value, CancelledError)
    assert builder.cancelled


def test_an_image_is_described_from_what_is_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "image.json").write_text(
        '{"version": "1.2", "kernel": "6.12.1", "python": "3.13", '
        '"rootfs_bytes": 54525952, "kernel_bytes": 13631488}'
    )
    image = lab.describe(tmp_path)
    assert image.name == "lab"
    assert image.rootfs == tmp_path / "rootfs.erofs"
    assert image.kernel == tmp_path / "kernel" / "vmlinux"
    assert "root 52 MiB, kernel 13 MiB" in image.description
    assert "console=" not in image.cmdline, "the console belongs to the machine"


def test_what_the_stand_in_card_lacks_is_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "build", lambda *_: pytest.fail("it was built"))
    monkeypatch.setattr(shutil, "which", lambda name, path=None: name == "mcopy" or None)
    with pytest.raises(ImageError, match=r"install .* cryptsetup-bin dosfstools genimage$"):
        standin.build(tmp_path)
    with pytest.raises(
        ImageError, match=r" gcc-aarch64-linux-gnu genimage( libc6-dev-arm64-cross)?$"
    ):
        standin.build(tmp_path, name="standin-rpi64")
    listed = host.listed(tree.find().root / "host-packages.txt")
    for name, kind in standin.KINDS.items():
        wanted = {*standin.PROGRAMS.values(), *dict(kind.programs).values()}
        wanted |= set(dict(kind.files).values())
        assert wanted <= listed["run"] | listed[name]
        assert wanted <= listed["run"] | listed["test"], "make test boots it"
    assert "squashfs-tools" in listed["bundle"] & listed["test"]


@pytest.mark.parametrize(
    ("board", "words"),
    [(None, "the lab image"), ("rpi64", "the stand-in for the firmware rpi64")],
)
def test_what_a_machine_lacks_is_told_of_the_image_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, board: str | None, words: str
) -> None:
    monkeypatch.setattr(host, "PROGRAMS", {"no-such-program": "its-package"})
    with pytest.raises(ImageError, match=rf"(?s)^programs that build {words} are .*its-package"):
        lab.build(tmp_path, board=board)
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(ImageError, match=f"^{words} is made .* this machine is riscv64"):
        lab.build(tmp_path, board=board)


@pytest.mark.skipif(not shutil.which("mksquashfs"), reason="no mksquashfs")
def test_a_bundle_of_a_stand_in_is_for_stand_ins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tmp_path / "images/standin/0123"
    card.mkdir(parents=True)
    (card / "boot.vfat").write_bytes(bytes(5000))
    (card / "root.verity").write_bytes(b"root" * 1024)
    (card / "manifest.json").write_text(
        '{"board": "x86_64", "version": "1.2", "epoch": 4, "commit": "unknown", '
        f'"root_hash": "{"0b" * 32}"}}'
    )
    monkeypatch.setattr(standin, "build", lambda *_: card)
    path = standin.bundle(tmp_path)
    assert path.name == "thicket-standin-1.2.unsigned"
    with path.open("rb") as file:
        said = bundles.read(file).manifest
    assert (said.compatible, said.version, said.epoch) == ("thicket-standin", "1.2", 4)
    assert (said.build, said.root) == ("0123", "0b" * 32)
    assert standin.bundle(tmp_path) == path
    other = standin.bundle(tmp_path, version="2", epoch=5)
    assert other.name == "thicket-standin-2.unsigned"
    with other.open("rb") as file:
        assert bundles.read(file).manifest.epoch == 5


def test_what_a_bundle_lacks_is_told_before_a_card_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin, "build", lambda *_: pytest.fail("it was built"))
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(ImageError, match=r"apt-get install .* squashfs-tools"):
        standin.bundle(tmp_path)
