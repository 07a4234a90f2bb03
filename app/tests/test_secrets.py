# SPDX-License-Identifier: Apache-2.0
"""No secret of a node gets into what it logs, shows or writes for others to read."""

import json
import logging
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from test_daemon import FakeParts, running

from thicket.base.fields import MASK
from thicket.base.paths import Paths
from thicket.cli.common import OK
from thicket.cli.main import main
from thicket.config.schema import Settings
from thicket.control.client import ClientError
from thicket.daemon import cluster_part, daemon
from thicket.distribution.handshake import LocalNode
from thicket.radio.wpa import configuration
from thicket.trust.credentials import Credentials
from thicket.trust.verify import Peer
from thicket.upkeep import report

#: Every one holds this word, so that one search finds any of them, and parts of them.
MARK = "Geheimnis"
PASSPHRASE, COOKIE, OTHER, TOKEN = (f"{MARK}-{what}" for what in ("mesh", "cookie", "new", "app"))
FILE = f"""\
[mesh]
security = "sae"
passphrase = "{PASSPHRASE}"
[cluster]
security = "cookie"
cookie = "{COOKIE}"
[log]
level = "debug"
[application.sensors]
token = "{TOKEN}"
"""
#: What people get wrong with secrets in the file.
FAULTY = (
    f'[mesh]\nsecurity = "sae"\npasphrase = "{PASSPHRASE}"\n',
    f'passphrase = "{PASSPHRASE}"\n',
    f'[mesh]\npassphrase = "{PASSPHRASE * 9}"\n',
    f'[cluster]\ncookie = "{COOKIE} {COOKIE}"\n',
    f'[cluster]\ncookie = ["{COOKIE}"]\n',
    f'[cluster.cookie]\nvalue = "{COOKIE}"\n',
    f"[cluster]\ncookie = {COOKIE}\n",
    f'[application.sensors]\ntoken = ["{TOKEN}", 1979-05-27]\n',
    f'[trust]\nroot = "-----BEGIN PRIVATE KEY-----{MARK}"\n',
    f'[access]\nssh_keys = "-----BEGIN OPENSSH PRIVATE KEY-----{MARK}"\n',
    f"{FILE}[nonsense]\nx = 1\n",
)


class Everything(logging.Handler):
    """Keeps each record as the log would have it, with its traceback."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def logged() -> Iterator[list[str]]:
    handler = Everything()
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    try:
        yield handler.lines
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setattr(daemon, "LATER", 0.0)
    monkeypatch.setattr(cluster_part, "LATER", 0.0)
    monkeypatch.setenv("THICKET_ROOT", str(tmp_path))
    made = Paths(str(tmp_path))
    for folder in ("etc/thicket", "proc/self", "data/thicket"):
        (tmp_path / folder).mkdir(parents=True)
    Path(made.cmdline).write_text("quiet\n")
    Path(made.device).write_text(FILE)
    return made


class TestDaemon:
    async def test_a_life_leaves_no_secret_anywhere(
        self, paths: Paths, logged: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        shown: list[str] = []
        parts = FakeParts()
        async with running(paths, parts) as run:
            await run.until(run.in_cluster, "the cluster part runs")
            assert run.daemon.core.settings.mesh.passphrase == PASSPHRASE
            assert parts.made_nodes[0].cookie == COOKIE
            for method in ("status", "peers", "nodes", "config"):
                shown.append(json.dumps(await run.ask(method)))
            for text in FAULTY:
                with pytest.raises(ClientError) as refused:
                    await run.ask("config-apply", text=text)
                shown.append(str(refused.value))
                Path(paths.device).write_text(text)
                shown.append(json.dumps(await run.ask("reload")))
                shown.append(json.dumps(await run.ask("status")))
                shown.append(report.compose(run.daemon.document()))
            Path(paths.device).write_text(FILE.replace(PASSPHRASE, OTHER).replace(COOKIE, OTHER))
            changed = (await run.ask("reload"))["changed"]
            assert changed == ["mesh.passphrase", "cluster.cookie"]
            await run.until(lambda: len(parts.made_nodes) == 2, "the node with the new cookie")
            shown.append(json.dumps(await run.ask("status")))
            shown.append(Path(paths.status).read_text())
            shown += [
                repr(run.daemon.core.settings),
                repr(run.daemon.core.loaded),
                repr(vars(run.daemon)),
                repr(vars(run.live)),
            ]
            shown += [repr(run.daemon.core.settings.mesh), str(run.daemon.core.settings.cluster)]
            assert PASSPHRASE not in repr(parts.meshes[0].applied)
        assert any("mesh.passphrase" in line for line in logged), "the log was heard"
        assert [text for text in [*shown, *logged] if MARK in text] == []
        output = capsys.readouterr()
        assert MARK not in output.out + output.err
        keepers = files_with(Path(paths.root), MARK)
        # The file itself, and the copies that only root may read.
        assert set(keepers) == {paths.device, paths.last_good}
        assert stat.S_IMODE(Path(paths.last_good).stat().st_mode) == 0o600

    def test_commands_show_none(self, paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["config", "show"]) == OK
        assert MASK in capsys.readouterr().out
        for number, text in enumerate((FILE, *FAULTY)):
            file = Path(paths.root, f"{number}.toml")
            file.write_text(text)
            main(["config", "check", str(file)])
            main(["config", "apply", str(file)])
        main(["config", "set", f"cluster.cookie={COOKIE} {COOKIE}"])
        main(["config", "set", "mesh.id=x", f"cluster.coookie={COOKIE}"])
        for key in ("trust.root", "access.ssh_keys"):
            main(["config", "set", f"{key}=-----BEGIN PRIVATE KEY-----{MARK}"])
        output = capsys.readouterr()
        assert "must be" in output.err + output.out
        assert MARK not in output.out + output.err


def files_with(folder: Path, word: str) -> list[str]:
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and word.encode() in path.read_bytes()
    ]


class TestReprs:
    def test_settings(self) -> None:
        values: dict[str, dict[str, Any]] = {
            "mesh": {"security": "sae", "passphrase": PASSPHRASE},
            "cluster": {"cookie": COOKIE},
            "application": {"sensors": {"token": TOKEN}},
        }
        settings = Settings(values)
        assert settings.mesh.passphrase == PASSPHRASE
        assert 'id="thicket"' in repr(settings.mesh)
        local = LocalNode("a@b", COOKIE, 1)
        assert local.cookie == COOKIE
        for thing in (settings, *(section for _, section in settings.sections()), local):
            assert MARK not in f"{thing!r} {thing} {[thing]}"

    def test_credentials(self) -> None:
        now = datetime.now(UTC)
        address = IPv6Address("::7")
        peer = Peer("0123", address, "n-1", False, "chip", b"", (), "Signer 0001", now)
        credentials = Credentials(MARK.encode(), (b"",), now, peer)
        assert MARK not in f"{credentials!r} {credentials} {[credentials]}"

    def test_a_refusal_of_the_radio_does_not_quote_the_passphrase(self, tmp_path: Path) -> None:
        long = {"mesh": {"security": "sae", "passphrase": f"{MARK}\0"}}
        with pytest.raises(ValueError, match="passphrase") as refused:
            configuration(Settings(long).mesh, str(tmp_path), 10)
        assert MARK not in str(refused.value)
