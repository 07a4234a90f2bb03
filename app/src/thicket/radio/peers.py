# SPDX-License-Identifier: Apache-2.0
"""Judges the stations: who is a peer, who refuses our passphrase, and whom to help."""

from typing import NamedTuple

from thicket.base.pace import Backoff
from thicket.radio.events import PeerDown, PeerUp
from thicket.radio.nl80211 import ESTABLISHED, Station
from thicket.radio.reports import Report, Solved

#: The state of a station that the kernel calls a peer, and that does not protect its frames.
UNPROTECTED = "UNPROTECTED"

#: A station from which nothing came for this many beacon intervals is out of reach.
SILENT_BEACONS = 5
#: Seconds for which a neighbour may be heard without becoming a peer before it is helped, and from
#: one help to the next. The first is twice what one round of attempts takes. Somebody who has
#: corrected a passphrase waits for the last one, and a round costs little.
STUCK_PAUSES = (60.0, 120.0, 240.0)
#: Seconds from entering the mesh anew to the next time.
REJOIN_PAUSES = (60.0, 120.0, 240.0)
#: Failures of authentication in a row with one neighbour that a weak signal does not explain.
REFUSED_TIMES = 2
#: Seconds after which a failure of authentication is forgotten.
FORGET_SECONDS = 120.0


class Note(NamedTuple):
    """A line for the log."""

    text: str


class Rejoin(NamedTuple):
    """Leave and enter the mesh, which frees the stations that wpa_supplicant has blocked."""


class Help(NamedTuple):
    """Begin an authentication with each of these neighbours."""

    macs: tuple[str, ...]


#: ``Words`` are to be told, a ``Deed`` is to be done.
Words = list[PeerUp | PeerDown | Note | Report | Solved]
Deed = Rejoin | Help


class _Stuck:
    """A neighbour that does not become a peer: when it is helped next, and the pauses between."""

    __slots__ = ("due", "pauses")

    def __init__(self, now: float) -> None:
        self.pauses = Backoff(*STUCK_PAUSES)
        self.helped(now)

    def helped(self, now: float) -> None:
        self.due = now + self.pauses.failed()


def patience(beacon_interval: int) -> float:
    """Milliseconds of silence after which a station is out of reach.

    :param beacon_interval: in TU of 1.024 ms.
    """
    return SILENT_BEACONS * beacon_interval * 1.024


def silent(stations: list[Station], most_ms: float) -> set[str]:
    """The stations from which not even beacons come any more."""
    return {one["mac"] for one in stations if (one["inactive_ms"] or 0) > most_ms}


def made_again(before: Station, now: Station) -> bool:
    """Whether the link to a peer is another one than at the last look.

    When a node is back soon after a power cut, its link still stands at the other end. There it is
    replaced within moments, with SAE without an event that it ended.
    """
    return (now["llid"], now["plid"]) != (before["llid"], before["plid"]) or (
        (now["connected_s"] or 0) < (before["connected_s"] or 0)
    )


class Peers:
    """What is known of the neighbours. Times in seconds, monotonic.

    :ivar macs: the peers.
    """

    __slots__ = (
        "_doubled", "_failures", "_next_rejoin", "_rejoins", "_stuck", "_unprotected", "macs",
    )  # fmt: skip

    def __init__(self) -> None:
        self.macs: set[str] = set()
        #: How often in a row authentication with a neighbour failed, and when at last.
        self._failures: dict[str, tuple[int, float]] = {}
        #: MAC addresses that two radios have: authentication with them fails for that reason.
        self._doubled: set[str] = set()
        self._unprotected: set[str] = set()
        self._stuck: dict[str, _Stuck] = {}
        self._next_rejoin = 0.0
        self._rejoins = Backoff(*REJOIN_PAUSES)

    def begin(self) -> None:
        """A session begins: nobody was waited for yet."""
        self._stuck = {}

    def refused(self) -> dict[str, int]:
        """The neighbours with which authentication fails, and how often in a row it did."""
        return {mac: count for mac, (count, _) in self._failures.items()}

    # who is a peer

    def protect(self, stations: list[Station]) -> tuple[list[Station], Words]:
        """Nobody is a peer whose frames are not protected, whatever its state of peering.

        For a secured mesh.

        :returns: the stations; those that are no peers for this reason have the state UNPROTECTED.
        """
        judged: list[Station] = []
        words: Words = []
        bad = set()
        for one in stations:
            if one["state"] != ESTABLISHED or (one["authorized"] and one["mfp"]):
                judged.append(one)
                continue
            judged.append({**one, "state": UNPROTECTED})
            bad.add(one["mac"])
            what = "data" if not one["authorized"] else "management"
            message = (
                f"the kernel has a link to {one['mac']} whose {what} frames are not protected; "
                "it is not used as a peer"
            )
            words.append(Report(f"sae-unprotected-{one['mac']}", "peer-unprotected", message))
        words += (Solved(f"sae-unprotected-{mac}") for mac in sorted(self._unprotected - bad))
        self._unprotected = bad
        return judged, words

    def look(self, before: list[Station], stations: list[Station]) -> Words:
        """The peers are those of ``stations``.

        :param before: the stations of the last look.
        """
        last = {one["mac"]: one for one in before if one["state"] == ESTABLISHED}
        present = [one for one in stations if one["state"] == ESTABLISHED]
        again = {
            one["mac"]
            for one in present
            if one["mac"] in last and made_again(last[one["mac"]], one)
        }
        # told as if a look in between had found them gone
        words = self.become(self.macs - again) if again else []
        return words + self.become({one["mac"] for one in present})

    def up(self, mac: str) -> Words:
        """There is one more peer."""
        return self.become(self.macs | {mac})

    def down(self, mac: str) -> Words:
        """There is one peer less."""
        return self.become(self.macs - {mac})

    def become(self, macs: set[str]) -> Words:
        """These are the peers."""
        words: Words = [PeerDown(mac) for mac in sorted(self.macs - macs)]
        for mac in sorted(macs - self.macs):
            words.append(PeerUp(mac))
            words += self._forget(mac)
            self._stuck.pop(mac, None)
            self._rejoins.reset()
        self.macs = set(macs)
        if macs:
            words += self._judge_refusals()
        return words

    # who refuses us

    def share_address(self, macs: set[str]) -> Words:
        """Two radios have each of these addresses; passphrases do not explain their failures."""
        if macs == self._doubled:
            return []
        self._doubled = set(macs)
        return [word for mac in macs for word in self._forget(mac)] + self._judge_refusals()

    def failed(self, mac: str, now: float, *, blocked: bool = False) -> Words:
        """Authentication with a neighbour failed.

        :param blocked: wpa_supplicant shuns the neighbour for that.
        """
        if mac in self._doubled:
            return [Note(f"authentication (SAE) with {mac}, which two radios are, failed")]
        count = self._failures.get(mac, (0, 0.0))[0] + 1
        self._failures[mac] = (count, now)
        if count < REFUSED_TIMES and not blocked:
            return [Note(f"authentication (SAE) with {mac} failed; it is tried again")]
        message = (
            f"authentication (SAE) with {mac} failed {count} time{'s' if count > 1 else ''}: it "
            "has another passphrase, is too far away, or two radios have one address; all nodes of "
            "a mesh need the same mesh.passphrase"
        )
        return [Report(f"sae-{mac}", "sae-failure", message), *self._judge_refusals()]

    def forget_old(self, now: float) -> Words:
        """Forget the failures of long ago."""
        old = [mac for mac, (_, then) in self._failures.items() if now - then > FORGET_SECONDS]
        return [word for mac in old for word in self._forget(mac)] + self._judge_refusals()

    def passphrase_changed(self) -> Words:
        """Another passphrase is used for new links; it is probably the right one."""
        for one in self._stuck.values():
            one.due = 0.0
        return [word for mac in list(self._failures) for word in self._forget(mac)]

    def _forget(self, mac: str) -> Words:
        self._failures.pop(mac, None)
        return [Solved(f"sae-{mac}")]

    def _judge_refusals(self) -> Words:
        """Tell when nobody takes our passphrase: then ours is the wrong one."""
        refusing = sorted(mac for mac, (n, _) in self._failures.items() if n >= REFUSED_TIMES)
        if self.macs or not refusing:
            return [Solved("sae-refused")]
        who = (
            f"{len(refusing)} neighbours refuse" if len(refusing) > 1 else f"{refusing[0]} refuses"
        )
        message = (
            f"this node has no peer, and {who} its passphrase: it was changed on the others while "
            "this node was away, or is wrong (or another radio has the address of this one); put "
            "the present one into thicket.toml on the card (mesh.passphrase), or use "
            "`thicket config set mesh.passphrase`"
        )
        return [Report("sae-refused", "passphrase-refused", message)]

    # whom to help

    def watch_the_stuck(self, stations: list[Station], most_ms: float, now: float) -> None:
        """Note which neighbours are heard and are no peers. For a secured mesh."""
        heard = {
            one["mac"]
            for one in stations
            if one["state"] != ESTABLISHED and (one["inactive_ms"] or 0) <= most_ms
        }
        for mac in heard:
            self._stuck.setdefault(mac, _Stuck(now))
        for mac in [mac for mac in self._stuck if mac in self.macs]:
            del self._stuck[mac]
        # A station comes and goes while it is tried; one that is gone for long is forgotten.
        for mac in [mac for mac, one in self._stuck.items() if mac not in heard]:
            if now > self._stuck[mac].due + self._stuck[mac].pauses.pause:
                del self._stuck[mac]

    def help_soon(self, mac: str, now: float) -> None:
        """A neighbour is blocked: it is helped some seconds later, because the other side gives up
        at about the same time."""
        stuck = self._stuck.setdefault(mac, _Stuck(now))
        stuck.due = min(stuck.due, now + stuck.pauses.pause / 4)

    def help_the_stuck(self, now: float, *, outdated: bool) -> Deed | None:
        """What helps neighbours that are heard and do not become peers.

        Each is helped ever more seldom, because the fault may be its own and stay (another
        passphrase). Without peers the mesh is entered anew. With peers, nothing may touch them.

        :param outdated: a former passphrase still opens links that others begin.
        """
        if outdated and not self.macs:
            return self.rejoin(now, at_once=True)
        due = tuple(mac for mac, one in self._stuck.items() if now >= one.due)
        for mac in due:
            self._stuck[mac].helped(now)
        if not due:
            return None
        return Help(due) if self.macs else self.rejoin(now)

    def rejoin(self, now: float, *, at_once: bool = False) -> Rejoin | None:
        """Enter the mesh anew if there are no peers, so that nothing is lost by it.

        With peers, a block ends by itself after ``max_inactivity``. The pauses grow, because the
        other side may have the wrong passphrase for long.

        :param at_once: do not wait for the end of a pause.
        """
        if self.macs or (now < self._next_rejoin and not at_once):
            return None
        self._next_rejoin = now + self._rejoins.failed()
        return Rejoin()
