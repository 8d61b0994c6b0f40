"""Decides whether a run was clean. Pure: from samples and what the process said at its end to findings.

A series is flat when the median of its last third is not above that of the second third by more than is allowed: a
number and a part of that median. The first third is for what grows once: arenas, caches, stacks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import watcher

#: Allowed growth: a number, and a part of the median. What comes and goes with each spawn moves by chance, as far as
#: so many threads can have it; a leak of one thing in a thousand spawns grows by more in ten minutes. What is
#: open at the end is compared exactly, in any run.
ALLOWED = {
    "descriptors": (8, 0.05),
    "memfds": (4, 0.05),
    "threads": (2, 0.05),
    "children": (6, 0.10),
    "zombies": (4, 0.10),
    "temporary files": (0, 0.0),
    "helpers' descriptors": (4, 0.05),
    "allocated KiB": (256, 0.01),
    "resident KiB": (2048, 0.03),
}
#: Half of the memory counts for a forked child while there is one, so that it jumps: it is shown only.
SHOWN = ("proportional KiB",)
assert {*ALLOWED, *SHOWN} == set(watcher.SERIES)
#: Memory is judged in runs of so many seconds: before that it grows by what is used for the first time.
MEMORY_FROM = 60.0


class Trend(NamedTuple):
    """One series: medians of its thirds, the most that was seen, and whether it is flat; None: not judged."""

    name: str
    medians: tuple[float, float, float]
    most: int
    limit: float
    flat: bool | None


def trend(name: str, values: Sequence[int], seconds: float) -> Trend:
    """Return what a series does. Raises ValueError for fewer than nine samples, which say nothing."""
    if len(values) < 9:
        raise ValueError(f"{len(values)} samples of {name}")
    third = len(values) // 3
    parts = values[:third], values[third : 2 * third], values[2 * third :]
    first, second, last = (statistics.median(part) for part in parts)
    number, part = ALLOWED.get(name, (0, 0.0))
    limit = second + max(number, math.ceil(second * part))
    is_judged = name in ALLOWED and (not name.endswith("KiB") or seconds >= MEMORY_FROM)
    return Trend(name, (first, second, last), max(values), limit, last <= limit if is_judged else None)


def trends(samples: list[dict[str, int]], seconds: float) -> list[Trend]:
    """Return those of all series."""
    return [trend(name, [sample[name] for sample in samples], seconds) for name in watcher.SERIES]


def grown(several: list[Trend]) -> list[str]:
    """Return what is not flat."""
    return [
        f"grows: {one.name}, median {one.medians[1]:g} in the second third, {one.medians[2]:g} in the last, "
        f"more than {one.limit:g}"
        for one in several
        if one.flat is False
    ]


def left(ended: dict[str, Any], temporary: list[str], strangers: list[str]) -> list[str]:
    """Return what is there at the end that was not there before, and whatever went wrong on the way."""
    found = [f"problem: {one}" for one in ended["problems"]]
    before, after = ended["before"], ended["after"]
    for name in sorted(before.keys() | after.keys()):
        if before.get(name, 0) != after.get(name, 0):
            found.append(f"left: {name} is open {after.get(name, 0)} times, {before.get(name, 0)} before")
    found += [f"left: child {one}" for one in ended["children"] if not _is_orphan(one)]
    found += [f"left: temporary file {one}" for one in temporary]
    found += [f"left: {one} beside the ledger" for one in strangers]
    lock = ended["lock"]
    if (lock["state"], lock["spawners"], lock["changers"], lock["changer_waits"]) != ("armed", 0, 0, False):
        found.append(f"lock: at the end {lock}")
    if ended["lost"]:
        found.append(f"lost: {ended['lost']} records at the end")
    return found


#: One change in so many spawns of strategy posix_spawn may have gone ahead beside one: see `known`.
FOREIGN = 30


def _is_orphan(child: str) -> bool:
    return child.endswith("(helper) Z")


def known(ended: dict[str, Any], by_libc: int) -> tuple[list[str], list[str]]:
    """Return what threat-model.md says may come, and of that what is more than it may be.

    A helper that is killed between the birth of a child and its answer leaves that to be reaped by who waits for any
    child (R-56). A change whose wait has run out goes ahead beside a thread that is in libc's posix_spawn when it may
    not compare that one's child with us: it is nobody just then, and about to become root again (R-24).
    """
    orphans = sum(map(_is_orphan, ended["children"]))
    killed = ended["counts"].get("helpers killed", 0)
    overlaps = ended["lock"]["overlaps"]
    notes, found = [], []
    if orphans:
        said = f"{orphans} children of {killed} helpers that were killed are left unreaped (R-56)"
        (notes if orphans * 10 <= killed else found).append(f"orphans: {said}")
    if overlaps:
        said = f"{overlaps} changes went ahead beside {by_libc} spawns by libc's posix_spawn (R-24)"
        (notes if overlaps * FOREIGN <= by_libc else found).append(f"overlaps: {said}")
    return notes, found


def sequence(told: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with how the lock stood over time: its epoch and its count of changes only grow."""
    found = []
    for name in ("epoch", "changes"):
        values = [one[name] for one in told]
        if values != sorted(values):
            found.append(f"lock: {name} has gone back")
    return found


def idle(several: dict[str, int]) -> list[str]:
    """Return who has done nothing: a run without them says nothing."""
    return [f"idle: no {name}" for name, count in several.items() if not count]
