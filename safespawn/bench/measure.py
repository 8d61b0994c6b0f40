"""Measures a cell: its processes side by side, all their ways in turn, round by round."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from . import machine, peers, plan, rounds, samples
from .plan import Cell, Task
from .results import UNITS, Results, Row
from .samples import Entry
from .tools import Tools, Unable

#: Between a way and what tells two processes apart that have it.
MARK = " | "

Say = Callable[[str], None]


def _tenths(entries: Sequence[Entry]) -> list[list[rounds.Turn]]:
    """Return ten rounds in which each has a tenth of the runs that were asked for."""
    return [[rounds.Turn(one.key, max(1, one.task.many // 10)) for one in entries] for _ in range(10)]


def _together(tasks: Sequence[Task]) -> list[list[Task]]:
    """Return tasks of one measure in one list: how many at once is compared in the same rounds."""
    made: dict[tuple[str, str], list[Task]] = {}
    for task in tasks:
        made.setdefault((task.measure, task.who), []).append(task)
    return list(made.values())


def makers(cell: Cell, tools: Tools) -> list[peers.Maker]:
    """Return what makes the processes of a cell."""
    place, small = cell.place, cell.place._replace(mib=10)
    if cell.peers == "python":
        return [peers.python_peer(tools, place)]
    if cell.peers == "question":
        return [peers.program(tools, place), peers.python_peer(tools, place)]
    if cell.peers == "flat":
        beside = peers.python_peer(tools, small, suffix=f"{MARK}10 MiB beside it")
        return [peers.python_peer(tools, place), beside]
    if cell.peers == "audit":
        ledger = str(tools.where / "ledger")
        return [
            peers.python_peer(tools, place),
            peers.python_peer(tools, place, suffix=f"{MARK}with a ledger", ledger=ledger),
        ]
    return [peers.python_peer(tools, place), *peers.of_other_languages(tools, place)]


def shifts(needs: Sequence[tuple[str, int]], available: int) -> tuple[list[list[int]], list[int]]:
    """Return which processes fit into memory together, as places in ``needs``, and which do not even alone.

    ``needs``: names and MiB; ``available``: MiB. They keep their order, so that the first shift has the
    first.
    """
    made: list[list[int]] = []
    too_large, room = [], 0
    for place, (_, need) in enumerate(needs):
        if need > available:
            too_large.append(place)
        elif made and need <= room:
            made[-1].append(place)
            room -= need
        else:
            made.append([place])
            room = available - need
    return made, too_large


def _share(wanted: Sequence[peers.Maker], shift: Sequence[int]) -> float:
    """Return the share of the time that a shift has: by how many ways its processes have."""
    return sum(wanted[place].ways for place in shift) / sum(one.ways for one in wanted)


class Measurement:
    """Measures cells into results. ``say`` is told what is going on, ``step`` when a task is done."""

    def __init__(self, results: Results, tools: Tools, options: plan.Options, say: Say) -> None:
        self._results, self._tools, self._options, self._say = results, tools, options, say

    def cell(self, cell: Cell, step: Callable[[], None]) -> None:
        """Measure one."""
        if cell.place.pages == "huge" and machine.huge_pages() in ("never", "none"):
            self._results.lacks("all ways", cell.title, f"huge pages: {machine.huge_pages()}")
            for _ in cell.tasks:
                step()
            return
        wanted = makers(cell, self._tools)
        available = machine.available_mib() - plan.RESERVE_MIB
        made, too_large = shifts([(one.name, one.needs) for one in wanted], available)
        for place in too_large:
            why = f"needs {wanted[place].needs} MiB, and {max(0, available)} MiB can be had"
            self._results.lacks(wanted[place].name, cell.title, why)
        for number, shift in enumerate(made):
            with self._started(cell, [wanted[place] for place in shift]) as started:
                for tasks in _together(cell.tasks):
                    self._say(f"{cell.title}: {tasks[0].measure}")
                    self._tasks(cell, tasks, number, started, _share(wanted, shift))
                    for _ in tasks if number == 0 else ():
                        step()
        if not made:
            for _ in cell.tasks:
                step()

    @contextlib.contextmanager
    def _started(self, cell: Cell, wanted: Sequence[peers.Maker]) -> Iterator[list[peers.Peer]]:
        with contextlib.ExitStack() as stack:
            started = []
            for maker in wanted:
                self._say(f"{cell.title}: {maker.name} starts")
                try:
                    peer = maker.make(any(task.measure == "memory" for task in cell.tasks))
                except (Unable, OSError) as problem:
                    self._results.lacks(maker.name, cell.title, str(problem))
                    continue
                stack.callback(peer.close)
                started.append(peer)
                self._results.resident.append(
                    {
                        "cell": cell.title,
                        "process": maker.name + peer.suffix,
                        "resident_mib": peer.resident_mib(),
                        "huge_mib": peer.huge_mib(),
                        "kept_bytes": peer.kept(),
                    }
                )
            yield started

    # ------------------------------------------------------------------ tasks of one measure

    def _tasks(
        self, cell: Cell, tasks: Sequence[Task], shift: int, started: Sequence[peers.Peer], share: float
    ) -> None:
        measure = tasks[0].measure
        if measure == "exec" and not self._tools.stamps:
            why = f"{self._tools.target} cannot tell when it began: {self._tools.missing['target']}"
            self._results.lacks("all ways", f"{cell.axis}: exec", why)
            return
        entries: list[Entry] = []
        for peer in started:
            if measure == "memory" and peer.group is None:
                self._results.lacks("memory during a spawn", cell.title, peer.uncounted)
                continue
            for task in tasks:
                entries += self._tried(cell, task, peer)
        if measure == "runs":
            self._run(entries, _tenths(entries))
        else:
            self._in_turn(entries, self._options.seconds * share * len(tasks))
        for one in entries:
            self._results.rows += _rows(cell, one, shift)

    def _tried(self, cell: Cell, task: Task, peer: peers.Peer) -> Iterator[Entry]:
        """Yield the ways of a process that work, warmed up, with what they cost; name those that do not."""
        for way in peer.ways:
            if plan.takes_part(task, way):
                entry = Entry(peer, way, task)
                try:
                    samples.warm_up(entry, self._options.warm)
                except Unable as problem:
                    self._results.lacks(way, _where(cell, task), str(problem))
                else:
                    yield entry

    def _in_turn(self, entries: Sequence[Entry], seconds: float) -> None:
        """Run as many rounds as the seconds are good for. On a busy machine they end early."""
        costs = {one.key: one.cost for one in entries}
        effort = rounds.Effort(seconds, self._options.least, self._options.most)
        planned = rounds.schedule(costs, effort)
        expected = sum(costs[turn.way] * turn.size for turns in planned for turn in turns)
        self._run(entries, planned, 2 * max(seconds, expected))

    def _run(
        self,
        entries: Sequence[Entry],
        planned: Sequence[Sequence[rounds.Turn]],
        at_most: float = float("inf"),
    ) -> None:
        """Run the rounds, for so many seconds at most; the least number of them in any case."""
        named = {one.key: one for one in entries}
        until = time.monotonic() + at_most
        for number, turns in enumerate(planned):
            if number >= self._options.least and time.monotonic() > until:
                break
            for turn in turns:
                entry = named[turn.way]
                try:
                    entry.keep(number, samples.take(entry, turn.size))
                except Unable as problem:
                    self._results.lacks(entry.way, f"round {number}", str(problem))


def _rows(cell: Cell, one: Entry, shift: int) -> Iterator[Row]:
    """Yield a row for each measure of an entry that has samples."""
    who, many = one.task.who, one.task.many
    for measure, taken in one.taken.items():
        if any(taken):
            unit, done = UNITS[measure], dict(one.done)
            yield Row(cell.axis, *cell.place, one.way, who, many, measure, unit, shift, taken, done)


def _where(cell: Cell, task: Task) -> str:
    """Say where a way is missing."""
    user = ", as another user" if task.who == "other" else ""
    return f"{cell.title}: {task.measure}{user}"
