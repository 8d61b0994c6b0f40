"""The figures that this package was asked to beat, what this machine makes of them, and ours beside them.

Pure.

They come from a question of 2010 about faster forks of large processes, and its answers (stackoverflow.com,
2731531), on other machines: a Core i7 with Debian Lenny.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import spread
from .results import Results, Row
from .tables import Table, per_second, significant

#: What the question calls a fork, and what its answers time: without an exec, and with one.
FORK_ALONE, FORK, POSIX_SPAWN = "C program, fork alone", "C program, fork, execve", "C program, posix_spawn"
OURS = ("safespawn.spawn", "safespawn.run", "safespawn.spawn, pool")

#: Forks a second: at 500 MB and in a process of minimal size; with huge pages, whatever the size.
_RATES = {500: "about 50/s", 0: "about 1,600/s"}
_HUGE = "about 2,400/s"
#: Seconds of 1,000 runs at 100 MB resident.
_RUNS = {FORK: "41.4 s", POSIX_SPAWN: "0.97 s"}


def _exits(results: Results, **wanted: object) -> Iterator[Row]:
    yield from results.select(axis="question", measure="exit", **wanted)


def _size(row: Row) -> str:
    return f"{row.mib:,} MiB" if row.mib else "minimal"


def rates(results: Results) -> Table:
    """Return how many a second there are at each size, in ordinary pages."""
    lines = []
    for row in _exits(results, pages="small"):
        if row.way in (FORK_ALONE, FORK, POSIX_SPAWN, "subprocess.run", *OURS) and row.mib in (0, 100, 500):
            told = _RATES.get(row.mib, "") if row.way == FORK_ALONE else ""
            lines.append([row.way, _size(row), told, per_second(row.spread)])
    return Table("Starts a second", ["", "resident", "the question", "here"], lines)


def runs(results: Results) -> Table:
    """Return what so many runs took, all together, at 100 MB resident."""
    lines, counts = [], []
    for row in results.select(axis="question", measure="runs"):
        if row.way == FORK_ALONE:
            continue
        counts.append(row.many)
        seconds = sum(spread.flat(row.rounds)) / 1e9
        lines.append([row.way, _RUNS.get(row.way, ""), f"{significant(seconds)} s"])
    count = f"{counts[0]:,}" if counts else ""
    return Table("Runs at 100 MB resident", ["", "the answer, 1,000 runs", f"here, {count} runs"], lines)


def huge(results: Results) -> Table:
    """Return how many a second there are with huge pages, and with ordinary ones beside them."""
    lines = []
    for row in _exits(results, pages="huge"):
        if row.way not in (FORK_ALONE, *OURS):
            continue
        beside = next(_exits(results, pages="small", mib=row.mib, way=row.way), None)
        told = _HUGE if row.way == FORK_ALONE else ""
        ordinary = per_second(beside.spread) if beside else ""
        lines.append([row.way, _size(row), told, per_second(row.spread), ordinary])
    head = ["", "resident", "the question", "here, huge pages", "here, ordinary pages"]
    return Table("Starts a second with huge pages", head, lines)


def of_question(results: Results) -> list[Table]:
    """Return the three tables; none if the axis was not measured."""
    return [table for table in (rates(results), runs(results), huge(results)) if table.rows]
