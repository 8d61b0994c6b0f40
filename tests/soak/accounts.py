"""Holds the ledger against the callers' book: each spawn one intent and one ending, the right one, and no more."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from book import WORD, Asked

#: The program of the helper, which the library starts for itself.
HELPER = "safespawn-helper"
#: The records of one spawn, in order; what ends one that runs nothing stands alone or behind its intent.
RAN = ("spawn.intent", "spawn.started", "spawn.exit")
REFUSALS = (
    ("spawn.failed",),
    ("spawn.denied",),
    ("spawn.intent", "spawn.failed"),
    ("spawn.intent", "spawn.denied"),
)
#: No more findings of one kind are told one by one.
SHOWN = 10


@dataclass
class Seen:
    """What the ledger has about one spawn."""

    events: list[str] = field(default_factory=list)
    argv: list[Any] = field(default_factory=list)
    outcome: str | None = None
    code: int | None = None
    strategy: str | None = None

    @property
    def token(self) -> str | None:
        """The last word of the command line, if it is one of the book's."""
        words = str(self.argv[-1]).split() if self.argv else []
        return words[-1] if words and words[-1].startswith(WORD) else None

    def take(self, record: dict[str, Any]) -> None:
        """Take its next record."""
        self.events.append(record["ev"])
        self.argv = self.argv or record.get("what", {}).get("argv", [])
        self.strategy = record.get("how", {}).get("strategy") or self.strategy
        if record["ev"] == "spawn.denied":
            self.outcome = "refused"
        elif record["ev"] in ("spawn.started", "spawn.failed"):
            self.outcome = record["outcome"]["outcome"]
        elif record["ev"] == "spawn.exit":
            how = record["exit"]
            self.code = how["code"] if "code" in how else -how["signal"]


class Ledger(NamedTuple):
    """What was read of a ledger."""

    spawns: dict[str, Seen]
    events: Counter[str]
    chains: int
    lost: int
    #: Why there were records of degradation, and how often.
    degraded: Counter[str]


def _lines(path: Path) -> Iterator[bytes]:
    older = [p for p in path.parent.glob(path.name + ".*") if p.suffix[1:].isdecimal()]
    for segment in (*sorted(older, key=lambda p: int(p.suffix[1:])), path):
        with open(segment, "rb") as file:
            yield from file


def read(path: Path) -> Ledger:
    """Read a ledger, segment by segment. That it is whole and genuine is the verifier's to say."""
    spawns: dict[str, Seen] = {}
    events: Counter[str] = Counter()
    degraded: Counter[str] = Counter()
    lost = 0
    for line in _lines(path):
        record = json.loads(line)
        events[record["ev"]] += 1
        if record["ev"] in ("audit.degraded", "chain.close"):
            lost += record["lost"]
        if record["ev"] == "audit.degraded":
            degraded[record["why"]] += 1
        if record["sid"] is not None and record["ev"].startswith(("spawn.", "exit.")):
            spawns.setdefault(record["sid"], Seen()).take(record)
    return Ledger(spawns, events, events["chain.open"], lost, degraded)


def _agrees(seen: Seen, result: str) -> bool:
    kind, _, told = result.partition(":")
    events = tuple(seen.events)
    if kind == "code":
        return events == RAN and seen.code == int(told)
    if kind == "dropped":
        return events == RAN and seen.code is not None
    if kind == "timeout":
        return events == RAN and seen.code is not None and seen.code < 0
    return events in REFUSALS and told in ("?", seen.outcome)


def compare(asked: dict[str, Asked], ledger: Ledger) -> list[str]:
    """Return what is in the one and not, or otherwise, in the other."""
    found: list[str] = []
    by_token: dict[str, list[Seen]] = {}
    for sid, seen in ledger.spawns.items():
        if seen.token is not None:
            by_token.setdefault(seen.token, []).append(seen)
        elif seen.argv[:1] != [HELPER]:
            found.append(f"unaccounted: spawn {sid} of {seen.argv!r} is in no book")
        elif tuple(seen.events) not in (RAN, *REFUSALS):
            found.append(f"helper: the records of {sid} are {seen.events}")
    found += [f"unaccounted: {token} is in no book" for token in by_token.keys() - asked.keys()]
    for token, one in asked.items():
        records = by_token.get(token, [])
        if one.result is None:
            found.append(f"untold: nobody learnt what became of {token} ({one.way})")
        elif len(records) != 1:
            found.append(
                f"unrecorded: {len(records)} spawns in the ledger for {token} ({one.way}, {one.result})"
            )
        elif not _agrees(records[0], one.result):
            told = f"{records[0].events}, outcome {records[0].outcome}, code {records[0].code}"
            found.append(
                f"otherwise: {token} ({one.way}) was {one.result} for its caller, the ledger has {told}"
            )
    return found


def shown(found: list[str]) -> list[str]:
    """Return findings as people want them: some of each kind, and how many more there are."""
    kinds: dict[str, list[str]] = {}
    for finding in found:
        kinds.setdefault(finding.partition(":")[0], []).append(finding)
    told = []
    for kind, several in kinds.items():
        told += several[:SHOWN]
        told += [f"{kind}: and {len(several) - SHOWN} more"] * (len(several) > SHOWN)
    return told
