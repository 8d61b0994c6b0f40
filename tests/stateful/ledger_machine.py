"""A model of the ledger: opened, rotated and closed on both sides of forks, while programs begin and end."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

import accounts
from modelled import Machine, Side

NUMBERS = st.integers(0, 11)


class Ledgers(Machine):
    """Chains of several processes in one ledger, with keys; what is done without one is in none."""

    keyed = True

    def begun(self, side: Side) -> None:
        """Each side has a ledger or none, writes to the newest segment or an older one, and has programs that run."""
        self.newest = getattr(self, "newest", 0)
        #: What the ledger must have: by token, the events.
        self.events = getattr(self, "events", {})
        self.opened = getattr(self, "opened", 1)
        side.more.setdefault("open", True)
        side.more.setdefault("at", self.newest)
        side.more["running"] = []

    def record(self, side: Side, token: str, *events: str) -> None:
        """These are written, if there is a ledger."""
        if side.more["open"]:
            self.events.setdefault(token, []).extend(events)

    # ------------------------------------------------------------------ steps

    @rule(on=NUMBERS, code=st.integers(0, 3))
    def run(self, on: int, code: int) -> None:
        """A program runs to its end."""
        side = self.any_side(on)
        token = self.token("run")
        assert side.ask("spawn", name=token, face="run", token=token, code=code)["code"] == code
        self.record(side, token, *accounts.RAN)

    @rule(on=NUMBERS)
    def missing(self, on: int) -> None:
        """A program is not there."""
        side = self.any_side(on)
        token = self.token("missing")
        assert side.raises("missing", token=token).name == "FileNotFoundError"
        self.record(side, token, "spawn.failed")

    @rule(on=NUMBERS)
    def begin(self, on: int) -> None:
        """A program begins; how it ends may be told in another segment, in another chain, or nowhere."""
        side = self.any_side(on)
        token = self.token("spawn")
        side.ask("spawn", name=token, face="spawn", token=token)
        side.more["running"].append(token)
        self.record(side, token, *accounts.RAN[:2])

    @rule(on=NUMBERS, which=NUMBERS)
    def end(self, on: int, which: int) -> None:
        """It ends."""
        side = self.any_side(on)
        running = side.more["running"]
        if running:
            token = running.pop(which % len(running))
            side.ask("go", name=token, code=1)
            assert side.ask("wait", name=token, timeout=None) == 1
            self.record(side, token, accounts.RAN[2])

    @rule(on=NUMBERS)
    def rotate(self, on: int) -> None:
        """A new segment, unless another process has begun one: then that is gone on with."""
        side = self.any_side(on)
        if side.more["open"]:
            assert side.ask("rotate") is True
            self.newest += side.more["at"] == self.newest
            side.more["at"] = self.newest
            self.verify()

    @rule(on=NUMBERS)
    def checkpoint(self, on: int) -> None:
        """A checkpoint; whoever writes one looks whether there is a newer segment."""
        side = self.any_side(on)
        if side.more["open"]:
            side.ask("checkpoint")
            side.more["at"] = self.newest

    @rule(on=NUMBERS)
    def close(self, on: int) -> None:
        """The chain ends; nothing was lost."""
        side = self.any_side(on)
        if side.more["open"]:
            assert side.ask("close") == 0
            side.more["open"] = False
            self.verify()

    @rule(on=NUMBERS)
    def open_anew(self, on: int) -> None:
        """Another chain; one that is open still is closed by that."""
        side = self.any_side(on)
        self.open(side)
        side.more.update(open=True, at=self.newest)

    @rule(on=NUMBERS)
    def fork(self, on: int) -> None:
        """Both sides go on, each in a chain of its own."""
        side = self.any_side(on)
        child = self.fork_side(side)
        if child is not None:
            child.more.update(open=side.more["open"], at=side.more["at"])
            self.begun(child)

    # ------------------------------------------------------------------ what holds

    def settled(self, side: Side) -> None:
        """End what runs still."""
        while side.more["running"]:
            token = side.more["running"].pop()
            side.ask("go", name=token, code=1)
            side.ask("wait", name=token, timeout=None)
            self.record(side, token, accounts.RAN[2])

    def verify(self) -> Any:
        """The segments are those that were begun, and what is in them is what was done, in its order."""
        ledger = super().verify()
        numbers = sorted(int(p.suffix[1:]) for p in self.where.glob("ledger.*") if p.suffix[1:].isdecimal())
        assert numbers == list(range(1, self.newest + 1))
        return ledger

    def accounts(self, ledger: accounts.Ledger) -> list[str]:
        """Compare; of an end without a beginning only the number is known."""
        seen = {one.token: one.events for one in ledger.spawns.values() if one.token is not None}
        ends = sum(one.token is None for one in ledger.spawns.values())
        only_ended = {token for token, events in self.events.items() if events == ["spawn.exit"]}
        expected = {token: events for token, events in self.events.items() if token not in only_ended}
        return (
            []
            if (seen, ends) == (expected, len(only_ended))
            else [f"{seen} {ends}", f"{expected} {only_ended}"]
        )
