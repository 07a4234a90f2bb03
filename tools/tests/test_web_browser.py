# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser. Without one these are skipped: `make test-web` brings it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from browser import Browser, browsing, program
from patience import PATIENCE
from web_for_tests import EVIL, FakeSource

from web.errors import WebError
from web.feed import Feed
from web.library import scripts
from web.model import Health, Problem, Update
from web.server import Server, page_files

SECRET = "a-secret"
DEEDS = frozenset({"cut", "restore", "move", "on", "off", "kill"})

pytestmark = [
    pytest.mark.skipif(program() is None, reason="no Chromium: `make test-web` installs it"),
    pytest.mark.timeout(6 * PATIENCE),
]


@pytest.fixture(scope="module")
def library() -> dict[str, bytes]:
    try:
        return scripts()
    except WebError as error:
        pytest.skip(f"no graph library: {error}")


@asynccontextmanager
async def opened(
    source: FakeSource, library: dict[str, bytes], *, secret: str = SECRET
) -> AsyncIterator[Browser]:
    feed = Feed(source)
    server = Server(feed, SECRET, page_files(library))
    port = await server.start(0)
    watching = asyncio.create_task(feed.run())
    try:
        async with browsing() as browser:
            await browser.size(1440, 900)
            await browser.open(f"http://127.0.0.1:{port}/#{secret}")
            yield browser
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await server.stop()


def count(selector: str) -> str:
    return f"document.querySelectorAll({json.dumps(selector)}).length"


def text(selector: str) -> str:
    return f"(document.querySelector({json.dumps(selector)})?.innerText ?? '')"


async def test_a_fleet_and_a_link_that_is_cut(library: dict[str, bytes]) -> None:
    source = FakeSource()
    async with opened(source, library) as page:
        await page.until(f"{count('.node')} == 8 && {count('.link')} == 10")
        assert await page.run("location.hash") == "", "the secret is not in the address any more"
        assert await page.run("document.title") == "orchard – Thicket"
        # both directions have their own colour
        classes = await page.run(
            "['there', 'back'].map(c => document.querySelector("
            "'[data-link=\"n3 n6\"] .' + c).getAttribute('class'))"
        )
        assert classes == ["there m3", "back m3"]
        assert "m2" in await page.run(
            "document.querySelector('[data-link=\"n1 n4\"] .there').getAttribute('class')"
        )

        begun = time.monotonic()
        source.cut("n2", "n5")
        await page.until(f"{count('.link.cut')} == 1")
        took = time.monotonic() - begun
        colour = await page.run(
            "getComputedStyle(document.querySelector('.link.cut .there')).stroke"
        )
        assert colour == "rgb(211, 17, 47)"
        assert took < 3.0
        assert "north mast – well house is gone" in await page.run(text("#detail"))

        # the worst is first, with what to do
        source.trouble("n6", "a station with another passphrase is near")
        await page.until(f"{text('#list li')}.startsWith('!')")
        assert "barn" in await page.run(text("#list li"))
        assert "Compare the passphrase" in await page.run(text("#detail"))

        # a search, and a filter
        await page.run("document.getElementById('search').focus()")
        for key in "weir":
            await page.key(key)
        await page.until(f"{count('#list li')} == 1")
        await page.key("Escape")
        await page.until(f"{count('#list li')} == 8")
        await page.click('[data-health="problem"]')
        await page.until(f"{count('#list li')} == 1")
        await page.click('[data-health="problem"]')
        assert page.messages == []


async def test_one_node_by_mouse_and_by_keyboard(library: dict[str, bytes]) -> None:
    source = FakeSource(deeds=DEEDS)
    source.nodes = [one._replace(on=True) for one in source.nodes]
    source.replace("n8", member=False, health=Health.AWAY)
    source.updates = (
        Update("version 0.3.1: 1 of 8 nodes have it", ("NODE", "PROGRESS"),
               (("n-000000000004", "[##        ]  20 %"),)),
    )  # fmt: skip
    async with opened(source, library) as page:
        await page.until(f"{count('.node')} == 8")
        assert await page.until(count("#detail progress")) == 1
        assert "pump" in await page.run(text("#detail table"))
        await page.click('.node[data-name="n1"] .disc')
        table = await page.until(text("#detail table"))
        assert "peer, −52 dBm" in table
        assert "2 hops by north mast" in table
        assert await page.run(count("tr.differs")) == 1, "in the radio's view, not the cluster's"
        await page.until(f"{count('.curve svg')} >= 3")
        assert await page.run(count(".link.way")) == 7
        hops = await page.run(
            text('.node[data-name="n2"] .hops').replace("innerText", "textContent")
        )
        assert hops == "1 hop"

        await page.key("Escape")
        await page.until(f"{count('.node.chosen')} == 0")
        await page.run("document.querySelector('#list button').focus()")
        await page.key("Enter")
        await page.until(f"{count('.node.chosen')} == 1")
        labels = await page.run(
            "[...document.querySelectorAll('.node')].map(n => [n.getAttribute('role'),"
            "n.getAttribute('tabindex'), n.getAttribute('aria-label')])"
        )
        assert all(role == "button" and tab == "0" for role, tab, _ in labels)
        assert any(label.startswith("weir, away") for *_, label in labels)

        # buttons of a simulated fleet
        await page.run(
            "document.querySelector('[data-link=\"n2 n3\"] .hit')"
            ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
        )
        await page.click(".deeds .bad")
        await page.until(f"{count('.link.cut')} == 1")
        assert [(one.kind, one.node, one.other) for one in source.done] == [("cut", "n2", "n3")]
        assert page.messages == []


async def test_members_that_lie_run_nothing(library: dict[str, bytes]) -> None:
    source = FakeSource()
    source.nodes[1] = source.nodes[1]._replace(
        label=EVIL, place=EVIL, note=EVIL, why=EVIL, state=EVIL, host=EVIL, address=EVIL,
        health=Health.PROBLEM, concerns=(EVIL,),
        problems=(Problem(EVIL, EVIL, EVIL, EVIL),),
        figures={**source.nodes[1].figures, "version": EVIL,
                 "applications": [{"name": EVIL, "state": EVIL}]},
    )  # fmt: skip
    source.updates = (Update(EVIL, (EVIL,), ((EVIL,),)),)
    async with opened(source, library) as page:
        await page.until(f"{count('.node')} == 8")
        assert "<img src=x" in await page.run(text("#detail")), "it is shown as text"
        await page.click("#list button")
        await page.until(f"{count('#detail table')} == 1")
        source.replace("n1", label=EVIL)
        await page.until("[...document.querySelectorAll('#list .name')]"
                         ".filter(n => n.textContent.includes('<img')).length == 2")  # fmt: skip
        assert await page.run(count("main script, img[src=x], main [onerror]")) == 0
        assert (await page.run("document.title")) == "orchard – Thicket"
        # even a script that got in would not run
        refused: Any = await page.run(
            "new Promise(done => { document.addEventListener('securitypolicyviolation',"
            "e => done(e.violatedDirective)); const s = document.createElement('script');"
            "s.textContent = 'document.title = 1'; document.body.append(s);"
            "setTimeout(() => done(''), 5000); })"
        )
        assert refused.startswith("script-src")
        assert (await page.run("document.title")) == "orchard – Thicket"


async def test_a_phone_in_the_dark(library: dict[str, bytes]) -> None:
    source = FakeSource()
    async with opened(source, library) as page:
        await page.media(prefers_color_scheme="dark")
        await page.size(390, 844, phone=True)
        await page.until(f"{count('.node')} == 8")
        for name in ("nodes", "map", "detail"):
            await page.click(f'[data-for="{name}"]')
            await page.until(
                f'document.querySelector(\'[data-for="{name}"]\').ariaCurrent == "true"'
            )
            wide = await page.run("document.documentElement.scrollWidth")
            assert wide <= 390, f"{name} is {wide} pixels wide"
        await page.click('[data-for="map"]')
        inside = await page.until(
            "[...document.querySelectorAll('.node .disc')].map(n => n.getBoundingClientRect())"
            ".every(b => b.left >= 0 && b.right <= 390 && b.top > 0 && b.bottom < 844)"
        )
        assert inside
        ground = await page.run("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(14, 20, 17)"
        await page.click("#theme")
        assert await page.run("document.documentElement.dataset.theme") == "light"


async def test_without_the_secret_it_says_what_is_wrong(library: dict[str, bytes]) -> None:
    async with opened(FakeSource(), library, secret="wrong") as page:
        await page.until(text("#trouble"))
        assert "lacks its key" in await page.run(text("#trouble"))
        assert await page.run(count(".node")) == 0
