"""How samples of a way are taken: what is asked of its process, and what is looked at from outside."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from . import peers
from .plan import Task
from .tools import Unable

#: A first sample within these seconds is followed by others, to warm up; how many once more later.
_WARM_SECONDS, _WARM_AGAIN = 0.02, 3
#: Spawns of each thread in one sample of a rate, for each sample that a turn has.
_RATE = 4
#: Seconds that a sample of a hang takes: the hang, and an interpreter that holds the lease.
_HANG = 1.3


@dataclass
class Entry:
    """A way of a process in a task, what a sample costs in seconds, and the samples by measure and round."""

    peer: peers.Peer
    way: str
    task: Task
    cost: float = 0.0
    taken: dict[str, list[list[int]]] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells it from the others that have turns in the same rounds."""
        return f"{self.way} x {self.task.many}"

    def keep(self, number: int, taken: Mapping[str, list[int]]) -> None:
        """Keep what was taken in that round; a round without a turn has no samples."""
        for measure, samples in taken.items():
            of = self.taken.setdefault(measure, [])
            of += [[] for _ in range(number - len(of))]
            of.append(samples)
        for what, times in self.peer.done().items():
            self.done[what] = self.done.get(what, 0) + times

    def ask(self, count: int) -> list[int]:
        """Return the numbers of so many samples of its task."""
        return self.peer.ask(self.task.measure, self.way, self.task.who, count, self.task.many)


def warm_up(one: Entry, times: int) -> None:
    """Call a way so often, slow ones less; note what it costs and what it leaves running. Raises Unable."""
    measure, many = one.task.measure, one.task.many
    if measure in ("memory", "hang", "runs"):
        measure, many = "exit", 1
    enough = _WARM_AGAIN if one.way in one.peer.warm else times
    one.peer.warm.add(one.way)
    seen: list[float] = []
    kept = one.peer.kept()
    while len(seen) < enough and (not seen or seen[-1] < _WARM_SECONDS):
        begun = time.monotonic()
        one.peer.ask(measure, one.way, one.task.who, _RATE if measure == "rate" else 1, many)
        seen.append(time.monotonic() - begun)
    one.cost = _HANG if one.task.measure == "hang" else min(seen)
    if one.task.measure == "exit":
        one.taken["kept"] = [[max(0, one.peer.kept() - kept)]]
    one.peer.done()


def take(one: Entry, count: int) -> dict[str, list[int]]:
    """Return so many samples, by measure. Raises Unable."""
    special = {"rate": _rate, "runs": _runs, "faults": _faults, "memory": _memory}
    return special.get(one.task.measure, _plain)(one, count)


def _plain(one: Entry, count: int) -> dict[str, list[int]]:
    """Take them after one that only warms up, where that is cheap."""
    measure = one.task.measure
    warm = int(one.cost < _WARM_SECONDS and one.task.many == 1)
    taken = one.ask(count + warm)
    if measure not in ("exit", "batch"):
        return {measure: taken[warm:]}
    first, second = taken[2 * warm :: 2], taken[2 * warm + 1 :: 2]
    calls = [call for call in first if call >= 0]
    return {measure: second, ("call" if measure == "exit" else "batch-start"): calls}


def _rate(one: Entry, count: int) -> dict[str, list[int]]:
    return {"rate": one.ask(_RATE * count)}


def _runs(one: Entry, count: int) -> dict[str, list[int]]:
    """Take the nanoseconds that so many runs take together."""
    return {"runs": [sum(one.peer.ask("exit", one.way, "self", count)[1::2])]}


def _faults(one: Entry, count: int) -> dict[str, list[int]]:
    """Take the faults of the parent, each on its own; what others left to be copied is settled before."""
    touches, seen = [], []
    one.peer.ask("faults", one.way, "self", 1)
    for _ in range(count):
        before = one.peer.faults()
        touches += one.peer.ask("faults", one.way, "self", 1)
        seen.append(one.peer.faults() - before)
    return {"faults": seen, "touch": touches}


def _memory(one: Entry, count: int) -> dict[str, list[int]]:
    group, taken = one.peer.group, []
    if group is None:
        raise Unable(one.peer.uncounted)
    for _ in range(count):
        before = group.begin()
        one.peer.ask("exit", one.way, "self", 1)
        taken.append(max(0, group.peak() - before))
    return {"memory": taken}
