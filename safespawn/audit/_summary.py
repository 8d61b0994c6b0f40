"""What a report tells of any number of spawns and events, in bounded memory. Pure."""

from __future__ import annotations

import heapq
import re
from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Generic, TypeVar

from ._lines import Record
from .spawns import Event, Spawn

#: Different keys that a tally counts; what comes after is counted together.
GROUPS_MAX = 5_000
#: Entries that a list keeps, the last ones; the slowest windows; lines that are no records, the first.
LIST_MAX, SLOWEST_MAX, PROBLEMS_MAX = 500, 50, 100
#: Hours of a timeline, two years; minutes, three days: then minutes are given up.
HOURS_MAX, MINUTES_MAX = 2 * 366 * 24, 3 * 24 * 60

HOUR_NS, MINUTE_NS = 3_600_000_000_000, 60_000_000_000

#: How a timeline tells spawns apart.
KINDS = ("vfork", "launcher", "helper", "fork", "other", "failed", "refused", "unknown")

#: Strategies that are counted with another: on our memory as vfork is, or from a helper.
_WITH = {"clone": "vfork", "posix_spawn": "vfork", "pool": "helper"}

Key = TypeVar("Key", bound=Hashable)


def kind(spawn: Spawn) -> str:
    """Return which of KINDS a spawn is: the strategy of one that ran its program, or why it did not."""
    if spawn.outcome in ("refused", "unknown"):
        return spawn.outcome
    if spawn.outcome != "exec":
        return "failed"
    strategy = _WITH.get(spawn.strategy or "", spawn.strategy)
    return strategy if strategy in KINDS[:4] else "other"


@dataclass(slots=True)
class Line:
    """What was counted under one key: how many spawns of each kind, and the last of them."""

    kinds: Counter[str] = field(default_factory=Counter)
    last: Spawn | None = None

    @property
    def count(self) -> int:
        """How many there are in all."""
        return self.kinds.total()


#: Words of a command, and reasons, that are shown of the last spawn of a key, about.
_BRIEF = 64


def _brief(spawn: Spawn) -> Spawn:
    """Return a spawn without most of what can make it large: the last one of each key is kept."""
    if len(spawn.argv) <= _BRIEF and len(spawn.why) + len(spawn.refused_by) <= _BRIEF and not spawn.tags:
        return spawn
    return replace(
        spawn,
        argv=spawn.argv[:_BRIEF],
        redacted=spawn.redacted[:_BRIEF],
        tags=None,
        why=spawn.why[:_BRIEF],
        refused_by=spawn.refused_by[:_BRIEF],
    )


class Tally(Generic[Key]):
    """Counts spawns by a key."""

    def __init__(self, room: int = GROUPS_MAX) -> None:
        self._room = room
        self._lines: dict[Key, Line] = {}
        #: Spawns whose key came when there was no more room.
        self.others = 0

    def add(self, key: Key, spawn: Spawn) -> None:
        """Count one."""
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= self._room:
                self.others += 1
                return
            line = self._lines[key] = Line()
        line.kinds[kind(spawn)] += 1
        line.last = spawn

    @property
    def count(self) -> int:
        """How many spawns were counted."""
        return self.others + sum(line.count for line in self._lines.values())

    def most(self, room: int) -> list[tuple[Key, Line]]:
        """Return the keys that came most, the most first."""
        return heapq.nsmallest(room, self._lines.items(), key=lambda item: (-item[1].count, repr(item[0])))

    def __len__(self) -> int:
        """Return how many keys there are."""
        return len(self._lines)


class Last(Generic[Key]):
    """The last of many, and how many there were."""

    def __init__(self, room: int = LIST_MAX) -> None:
        self.kept: deque[Key] = deque(maxlen=room)
        self.count = 0

    def add(self, one: Key) -> None:
        """Keep one."""
        self.kept.append(one)
        self.count += 1


class Times:
    """How many spawns of each kind began in each hour, and in each minute of a short time."""

    def __init__(self) -> None:
        self.hours: dict[int, Counter[str]] = {}
        self.minutes: dict[int, Counter[str]] | None = {}
        #: Spawns of hours for which there was no more room.
        self.others = 0

    def add(self, spawn: Spawn) -> None:
        """Count one."""
        hour, which = spawn.when_ns // HOUR_NS, kind(spawn)
        if hour in self.hours or len(self.hours) < HOURS_MAX:
            self.hours.setdefault(hour, Counter())[which] += 1
        else:
            self.others += 1
        if self.minutes is not None:
            self.minutes.setdefault(spawn.when_ns // MINUTE_NS, Counter())[which] += 1
            if len(self.minutes) > MINUTES_MAX:
                self.minutes = None


@lru_cache(maxsize=4096)
def alike(reason: str) -> str:
    """Return a reason without its numbers and digests, so that those that differ in nothing else are one."""
    return re.sub(r"\b(?:[0-9a-f]{16,}|[0-9]+)\b", "…", reason)


#: Different names of events, outcomes and so on that are counted each; a hostile ledger has any number.
_NAMES_MAX = 200


def _count(counter: Counter[str], name: str | None) -> None:
    name = "none" if name is None else name
    counter[name if name in counter or len(counter) < _NAMES_MAX else "others"] += 1


#: The records of the ledger about itself; and those about records that were lost, here or elsewhere.
_ROUTINE = frozenset(("chain.open", "chain.close", "chain.fork", "checkpoint"))
_LOSSES = frozenset(("audit.degraded", "audit.restored", "mirror.down", "mirror.up"))


class Summary:
    """What a report tells. Add entries in any order; the last ``rows`` spawns are kept whole."""

    def __init__(self, rows: int = 2_000) -> None:
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self.outcomes: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.strategies: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.programs: Tally[tuple[int | str | None, ...]] = Tally()
        self.ways: Tally[tuple[str, ...]] = Tally()
        self.fallbacks: Tally[tuple[str, ...]] = Tally()
        self.tags: Tally[tuple[str, str]] = Tally()
        self.times = Times()
        self.rows: Last[Spawn] = Last(rows)
        self.refused: Last[Spawn] = Last()
        self.failed: Last[Spawn] = Last()
        self.unknown: Last[Spawn] = Last()
        self.changes: Last[Event] = Last()
        self.losses: Last[Event] = Last()
        self.others: Last[Event] = Last()
        self.problems: list[Record] = []
        self.problem_count = 0
        self.repeated = 0
        self._slowest: list[tuple[int, int, Spawn]] = []

    @property
    def count(self) -> int:
        """How many spawns there are."""
        return self.rows.count

    def add(self, entry: Spawn | Event) -> None:
        """Take one spawn or event."""
        self.first_ns = entry.when_ns if self.first_ns is None else min(self.first_ns, entry.when_ns)
        self.last_ns = entry.when_ns if self.last_ns is None else max(self.last_ns, entry.when_ns)
        if isinstance(entry, Spawn):
            self._spawn(entry)
        else:
            self._event(entry)

    def problem(self, record: Record) -> None:
        """Take a line that is no record."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(record)

    def slowest(self) -> list[Spawn]:
        """Return the spawns with the longest windows, the longest first."""
        return [spawn for _, _, spawn in sorted(self._slowest, reverse=True)]

    def _event(self, event: Event) -> None:
        _count(self.events, event.event)
        lost = event.event == "chain.close" and event.record.fields.get("lost")
        if event.event == "cred.change":
            self.changes.add(event)
        elif event.event in _LOSSES or lost:
            self.losses.add(event)
        elif event.event not in _ROUTINE:
            self.others.add(event)

    def _spawn(self, spawn: Spawn) -> None:
        self.rows.add(spawn)
        self.times.add(spawn)
        self._count(spawn)
        self._group(spawn)
        kept = {"failed": self.failed, "refused": self.refused, "unknown": self.unknown}.get(kind(spawn))
        if kept is not None:
            kept.add(spawn)
        if spawn.window_ns is not None:
            item = spawn.window_ns, self.count, spawn
            (heapq.heappush if len(self._slowest) < SLOWEST_MAX else heapq.heappushpop)(self._slowest, item)

    def _count(self, spawn: Spawn) -> None:
        _count(self.outcomes, spawn.outcome)
        _count(self.strategies, spawn.strategy)
        if spawn.outcome != "exec":
            return
        if not spawn.ended:
            self.ends["running or unknown"] += 1
        elif spawn.signal is not None:
            self.ends["killed by a signal"] += 1
        elif spawn.exit_code is not None:
            self.ends["exit 0" if spawn.exit_code == 0 else "exit not 0"] += 1
        else:
            self.ends["end unknown"] += 1

    def _group(self, spawn: Spawn) -> None:
        brief = _brief(spawn)
        program = spawn.program or ""
        self.programs.add((spawn.ruid, spawn.euid, spawn.auid, spawn.want_uid, program), brief)
        reasons = tuple(map(alike, brief.why))
        asked, strategy, proof = spawn.requested or "?", spawn.strategy or "none", spawn.proof or "none"
        self.ways.add((asked, strategy, proof, *reasons), brief)
        if spawn.fell_back:
            self.fallbacks.add((asked, spawn.intended or "", *reasons), brief)
        for pair in (spawn.tags or {}).items():
            self.tags.add(pair, brief)
