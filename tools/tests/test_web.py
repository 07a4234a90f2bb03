# SPDX-License-Identifier: Apache-2.0
"""The page's server, and what it is fed from."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from patience import PATIENCE
from web_for_tests import EVIL, FakeSource, node

from remote.errors import RemoteError
from remote.fleet_source import FleetSource
from web import feed as feed_module
from web import library, server
from web.advice import ADVICE, what_to_do
from web.details import of_status
from web.errors import WebError
from web.feed import Feed
from web.links import SHOWN_CUT, Links
from web.model import Health, LinkState, Side
from web.plan import Origin, read
from web.server import Server, page_files

TOP = Path(__file__).parents[2]
PAGE = TOP / "tools/src/web/page"
SECRET = "a secret"
LIBRARY = {one.file: b"// it" for one in library.PACKAGES}


class Site:
    """A page that is served, and a client of it."""

    def __init__(self, feed: Feed, port: int, client: aiohttp.ClientSession) -> None:
        self.feed = feed
        self.port = port
        self.client = client

    async def get(self, path: str, *, known: bool = True, **more: Any) -> tuple[int, bytes, Any]:
        headers = {"Authorization": f"Bearer {SECRET}"} if known else {}
        headers |= more.pop("headers", {})
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.client.request(
            more.pop("method", "GET"), url, headers=headers, **more
        ) as answer:
            return answer.status, await answer.read(), answer.headers

    @asynccontextmanager
    async def live(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        async with self.client.get(
            f"http://127.0.0.1:{self.port}/api/live", headers={"Authorization": f"Bearer {SECRET}"}
        ) as answer:
            assert answer.status == 200, await answer.text()
            yield self._messages(answer)

    async def _messages(self, answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
        while True:
            async with asyncio.timeout(PATIENCE):
                line = await answer.content.readuntil(b"\n\n")
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


@asynccontextmanager
async def site(source: FakeSource, **more: Any) -> AsyncIterator[Site]:
    feed = Feed(source)
    served = Server(feed, SECRET, page_files(LIBRARY), **more)
    port = await served.start(0)
    watching = asyncio.create_task(feed.run())
    try:
        async with aiohttp.ClientSession() as client:
            with feed.looking() as changed:
                async with asyncio.timeout(PATIENCE):
                    while feed.picture is None and not feed.trouble:
                        changed.clear()
                        await changed.wait()
            yield Site(feed, port, client)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await served.stop()


class TestWhoMayLook:
    async def test_the_page_itself_holds_nothing_and_asks_for_nothing(self) -> None:
        async with site(FakeSource()) as page:
            for path in ("/", "/main.js", "/page.css", "/icon.svg", "/lib/d3-force.min.js"):
                status, body, headers = await page.get(path, known=False)
                assert status == 200, path
                assert b"orchard" not in body
                policy = headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert headers["X-Content-Type-Options"] == "nosniff"
                assert headers["Cache-Control"] == "no-store"
                assert headers["X-Frame-Options"] == "DENY"

    @pytest.mark.parametrize("path", ["/api/live", "/api/node?name=n1", "/api/curves?name=n1",
                                      "/api/plan"])  # fmt: skip
    @pytest.mark.parametrize(
        "given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": SECRET},
                  {"Cookie": f"secret={SECRET}"}]
    )  # fmt: skip
    async def test_a_fleet_takes_the_secret(self, path: str, given: dict[str, str]) -> None:
        async with site(FakeSource()) as page:
            status, body, headers = await page.get(path, known=False, headers=given)
            assert status == 403
            assert b"orchard" not in body
            assert "Content-Security-Policy" in headers

    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil"])
    async def test_another_name_for_this_machine_leads_nowhere(self, host: str) -> None:
        async with site(FakeSource()) as page:
            status, _, _ = await page.get("/api/node?name=n1", headers={"Host": host})
            assert status == 421

    async def test_it_is_on_loopback_alone(self) -> None:
        assert server.LOOPBACK == "127.0.0.1"

    async def test_a_port_that_is_taken_is_said(self) -> None:
        async with site(FakeSource()) as page:
            other = Server(page.feed, SECRET, page_files(LIBRARY))
            with pytest.raises(WebError, match="--port takes another"):
                await other.start(page.port)


class TestWhatIsSent:
    async def test_a_picture_comes_at_once_and_again_with_each_change(self) -> None:
        source = FakeSource()
        async with site(source) as page, page.live() as messages:
            first = await anext(messages)
            assert len(first["picture"]["nodes"]) == 8
            assert first["source"] == {"name": "orchard", "kind": "fleet", "deeds": []}
            begun = time.monotonic()
            source.cut("n1", "n2")
            second = await anext(messages)
            took = time.monotonic() - begun
            cut = [one for one in second["picture"]["links"] if one["state"] == "cut"]
            assert [(one["one"], one["other"]) for one in cut] == [("n1", "n2")]
            assert second["events"][-1]["words"] == "The link gate – north mast is gone"
            assert took < 3.0

    async def test_who_does_not_change_sends_nothing_new(self) -> None:
        source = FakeSource()
        async with site(source) as page, page.live() as messages:
            await anext(messages)
            number, _ = page.feed.message()
            for _ in range(20):
                source.change()
                await asyncio.sleep(0)
            assert page.feed.message()[0] == number

    async def test_a_source_out_of_reach_is_said_and_the_last_picture_stays(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(feed_module, "PAUSES", (0.01,))
        source = FakeSource()
        async with site(source) as page, page.live() as messages:
            await anext(messages)
            source.failure = RemoteError("unreachable", "ssh to gate ended with status 255")
            source.change()
            lost = await anext(messages)
            assert lost["trouble"] == "ssh to gate ended with status 255"
            assert len(lost["picture"]["nodes"]) == 8
            source.failure = None
            assert (await anext(messages))["trouble"] == ""

    async def test_pages_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "MOST_LOOKERS", 1)
        async with site(FakeSource()) as page, page.live() as messages:
            await anext(messages)
            status, body, _ = await page.get("/api/live")
            assert status == 503
            assert b"close one" in body

    async def test_one_node_and_its_curves(self) -> None:
        async with site(FakeSource()) as page:
            status, body, _ = await page.get("/api/node?name=n1")
            assert status == 200
            known = json.loads(body)
            assert {one["node"] for one in known["peers"]} == {"n2", "n3", "n4"}
            assert {"node": "n5", "next": "n2", "hops": 2, "metric": 900} in known["paths"]
            _, body, _ = await page.get("/api/curves?name=n1&seconds=86400")
            curves = json.loads(body)
            assert curves["seconds"] == 86400
            assert curves["links"][0]["signal"][0][1] == -52
            for path in ("/api/node?name=x", "/api/curves?name="):
                assert (await page.get(path))[0] == 404

    async def test_a_node_is_asked_once_for_all_and_few_at_a_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, asked = FakeSource(), 0
        begun, go = asyncio.Event(), asyncio.Event()

        async def slow(name: str) -> dict[str, Any]:
            nonlocal asked
            asked += 1
            begun.set()
            await go.wait()
            return {"of": name}

        monkeypatch.setattr(source, "detail", slow)
        monkeypatch.setattr(feed_module, "MOST_ASKED", 1)
        async with site(source) as page:
            both = [asyncio.create_task(page.get("/api/node?name=n1")) for _ in range(2)]
            await begun.wait()
            status, body, _ = await page.get("/api/node?name=n2")
            assert (status, b"try again" in body) == (409, True)
            go.set()
            assert [one[0] for one in await asyncio.gather(*both)] == [200, 200]
            assert asked == 1


class TestDeeds:
    @pytest.mark.parametrize("kind", ["cut", "explode", ""])
    async def test_nothing_can_be_done_to_a_real_fleet(self, kind: str) -> None:
        source = FakeSource()
        async with site(source) as page:
            status, _, _ = await page.get(
                "/api/do", method="POST", json={"kind": kind, "node": "n1", "other": "n2"}
            )
            assert status == 403
            assert source.done == []

    async def test_a_simulated_one_is_changed(self) -> None:
        source = FakeSource(deeds=frozenset({"cut", "move"}))
        async with site(source) as page:
            for words in (
                {"kind": "cut", "node": "n1", "other": "n2"},
                {"kind": "move", "node": "n1", "x": 1, "y": 2.5},
            ):
                assert (await page.get("/api/do", method="POST", json=words))[0] == 200
            assert [one.kind for one in source.done] == ["cut", "move"]
            assert source.done[1].at == (1, 2.5)

    @pytest.mark.parametrize(
        ("given", "status"),
        [
            ({"data": b'{"kind": "cut"}'}, 415),
            ({"data": b"{", "headers": {"Content-Type": "application/json"}}, 400),
            ({"json": {"kind": "cut", "node": "nobody", "other": "n2"}}, 404),
            ({"json": {"kind": "cut", "node": "n1", "more": "x" * 20_000}}, 413),
            ({"json": ["cut"]}, 403),
        ],
    )
    async def test_nonsense_does_nothing(self, given: dict[str, Any], status: int) -> None:
        source = FakeSource(deeds=frozenset({"cut"}))
        async with site(source) as page:
            assert (await page.get("/api/do", method="POST", **given))[0] == status
            assert source.done == []


class TestLinks:
    def told(self, **links: list[str]) -> dict[str, dict[str, Side]]:
        return {one: {other: Side(-60, 100) for other in others} for one, others in links.items()}

    def test_what_both_tell_is_up_and_what_none_tells_any_more_is_cut(self) -> None:
        links = Links()
        assert links.judged(self.told(a=["b"], b=["a"]), 10.0)[0].state is LinkState.UP
        one_way = links.judged(self.told(a=[], b=["a"]), 20.0)[0]
        assert (one_way.state, one_way.since) == (LinkState.ONE_WAY, 20.0)
        cut = links.judged(self.told(a=[], b=[]), 30.0)[0]
        assert (cut.state, cut.since) == (LinkState.CUT, 30.0)
        assert links.judged(self.told(a=[], b=[]), 40.0)[0].since == 30.0
        assert links.judged(self.told(a=[], b=[]), 30.0 + SHOWN_CUT) == ()

    def test_one_end_that_tells_nothing_spoils_no_link(self) -> None:
        assert Links().judged(self.told(a=["b"]), 10.0)[0].state is LinkState.UP

    def test_a_node_has_no_link_with_itself(self) -> None:
        assert Links().judged(self.told(a=["a"]), 10.0) == ()


def row(number: int, **members: Any) -> dict[str, Any]:
    return {
        "name": f"thicket@fd12::{number}", "host": f"n-{number}", "address": f"fd12::{number}",
        "label": None, "this": number == 1, "member": True, "health": "well", "state": "joined",
        "links": [], **members,
    }  # fmt: skip


def fleet(*rows: Any) -> FleetSource:
    return FleetSource("gate", lambda _: pytest.fail("nobody is asked"))


class TestAFleet:
    def test_a_document_becomes_a_picture(self) -> None:
        source = fleet()
        made = source.picture(
            {
                "node": "thicket@fd12::1",
                "nodes": [
                    row(1, label="gate", position=[50.0, 8.0], links=[
                        {"node": "thicket@fd12::2", "signal_dbm": -60, "metric": 100},
                        {"node": "0123456789ab", "signal_dbm": -60, "metric": 100},
                    ]),
                    row(2, position=[50.001, 8.0], health="problem", way={"hops": 2},
                        problem={"severity": "error", "part": "radio", "code": "no-radio",
                                 "message": "no radio"},
                        problems={"error": 2, "warning": 1}),
                ],
            }
        )  # fmt: skip
        gate, other = made.nodes
        assert (gate.label, gate.asked, gate.at) == ("gate", True, (0.0, 0.0))
        assert other.at == (0.0, -111.32)
        assert (other.health, other.hops, other.more_problems) == (Health.PROBLEM, 2, 2)
        assert "802.11s" in other.problems[0].to_json()["do"]
        assert [(one.one, one.other, one.state) for one in made.links] == [
            ("thicket@fd12::1", "thicket@fd12::2", LinkState.ONE_WAY)
        ]

    @pytest.mark.parametrize(
        "nonsense",
        [None, [], "x", {"nodes": 5}, {"nodes": [None, 1, "x", {}, {"name": 5}]},
         {"nodes": [row(1, links=[{"node": 5, "metric": "x", "signal_dbm": 1e99}], position="x",
                        health="excellent", problem=5, problems=[], way=[], heard="never",
                        applications=[5], memory={"available": -1, "size": 0}, concerns="x")]},
         {"nodes": [row(1, label="x" * 10_000, why="\x1b[2J" * 999)]},
         {"nodes": [row(1)] * 5000}],
    )  # fmt: skip
    def test_a_node_that_lies_is_bounded(self, nonsense: Any) -> None:
        made = fleet().picture(nonsense)
        text = json.dumps(made.to_json())
        assert len(text) < 10_000
        assert all(one.why.isprintable() for one in made.nodes)

    async def test_it_is_asked_through_one_node(self) -> None:
        asked: list[tuple[str | None, str]] = []

        class Node:
            def __init__(self, name: str | None) -> None:
                self.name = name

            async def request(self, method: str, params: dict[str, Any]) -> Any:
                asked.append((self.name, method))
                if method == "update-status":
                    raise RemoteError("no-slots", "no slots")
                if method == "status":
                    return {"state": "joined", "peers": [{"address": "fd12::1", "state": "ESTAB"}]}
                return {"node": "thicket@fd12::1", "nodes": [row(1), row(2)]}

        @asynccontextmanager
        async def opens(name: str | None) -> AsyncIterator[Node]:
            yield Node(name)

        source = FleetSource("gate", opens)
        watching = source.watch(lambda: True)
        picture = await anext(watching)
        assert len(picture.nodes) == 2
        found = await source.detail("thicket@fd12::2")
        assert found["peers"][0]["node"] == "thicket@fd12::1"
        await watching.aclose()  # type: ignore[attr-defined]
        assert asked == [(None, "fleet"), (None, "update-status"), ("fd12::2", "status")]


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        [],
        {"peers": 5, "paths": [5], "cluster": []},
        {"problems": [{"message": EVIL * 99}], "radio": "x"},
    ],
)
def test_a_status_that_lies_is_bounded(nonsense: Any) -> None:
    assert len(json.dumps(of_status(nonsense, {}))) < 2000  # fmt: skip


def test_every_advice_is_about_a_problem_that_node_md_knows() -> None:
    text = (TOP / "docs/node.md").read_text()
    for part, code in ADVICE:
        assert f"`{part}" in text, part
        assert not code or re.search(rf"`-?{code}`", text), code
    assert "logs" in what_to_do("unheard", "of")


class TestThePage:
    def test_no_script_makes_html_of_text(self) -> None:
        for path in PAGE.glob("*.js"):
            text = path.read_text()
            for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                        "new Function", "srcdoc", "javascript:"):  # fmt: skip
                assert way not in text, f"{path.name}: {way}"

    def test_nothing_is_inline_or_from_elsewhere(self) -> None:
        text = (PAGE / "index.html").read_text()
        assert not re.search(r"<style|style=|\son\w+=|<script>", text)
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)
        for path in PAGE.iterdir():
            found = re.findall(r"https?://[\w.]+", path.read_text())
            assert set(found) <= {"http://www.w3.org"}, path.name

    def test_the_page_loads_the_library_that_is_fetched(self) -> None:
        text = (PAGE / "index.html").read_text()
        assert re.findall(r'src="lib/([^"]+)"', text) == [one.file for one in library.PACKAGES]


class TestTheLibrary:
    def npm(self, folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
        path = folder / "bin" / "npm"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")

    def test_what_has_another_hash_is_not_taken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.npm(tmp_path, "echo evil > d3-dispatch-3.0.2.tgz", monkeypatch)
        with pytest.raises(WebError, match="not what this version of Thicket was made with"):
            library.scripts(tmp_path / "cache")
        assert not list((tmp_path / "cache").rglob("*.tgz"))

    def test_without_the_internet_it_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.npm(tmp_path, "echo 'npm ERR! network' >&2; exit 1", monkeypatch)
        with pytest.raises(WebError, match="needed once, with the internet"):
            library.scripts(tmp_path)

    def test_without_npm_it_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(WebError, match="apt-get install"):
            library.scripts(tmp_path)


class TestThePlan:
    async def test_it_goes_to_those_who_may_look(self, tmp_path: Path) -> None:
        path = tmp_path / "plan.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n...")
        plan = read(path, (0.0, 0.0), (100.0, 50.0))
        async with site(FakeSource(), plan=plan) as page, page.live() as messages:
            message = await anext(messages)
            assert message["plan"] == {"left": 0.0, "top": 0.0, "right": 100.0, "bottom": 50.0}
            _, body, headers = await page.get("/api/plan")
            assert (body, headers["Content-Type"]) == (path.read_bytes(), "image/png")

    def test_what_is_no_plan_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "plan.svg"
        path.write_text("<svg onload='alert(1)'/>")
        with pytest.raises(WebError, match="is no image"):
            read(path, (0, 0), (1, 1))
        path.write_bytes(b"\xff\xd8\xff")
        with pytest.raises(WebError, match="upper left"):
            read(path, (10, 0), (1, 1))

    def test_degrees_become_metres(self) -> None:
        east, south = Origin(60.0, 10.0).metres(59.9, 10.1)
        assert abs(east - 5566) < 10
        assert abs(south - 11132) < 10


def test_labels_of_a_fleet_are_those_of_its_nodes() -> None:
    assert node(1, "gate").to_json()["label"] == "gate"
