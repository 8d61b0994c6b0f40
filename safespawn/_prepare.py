"""`prepare_fork`: what a fork of this process costs, and making it less by huge pages."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from . import _binding, _mappings
from ._values import flag, integer

#: A block is made huge when this part of it is in use by us alone: what is added is 1/7 of that at most.
_FILLED = (7, 8)

#: Bytes of one system call's worth of work: a signal handler of Python runs after each.
_PIECE = 64 << 20

#: Bytes that may be added without being asked.
ADDED = 64 << 20

_BLOCK = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"


@dataclass(frozen=True)
class ForkCost:
    """What a fork copies, in bytes, and how long one took, in nanoseconds. None: could not be told.

    ``page_tables`` is VmPTE of proc_pid_status(5); it does not fall by collapsing, because the kernel keeps
    a table in reserve for each huge page. ``resident`` and ``huge`` are Rss and AnonHugePages of
    smaps_rollup. ``entries`` is how many entries of the page tables anonymous memory has, a huge page
    one: what takes most of the time. ``fork_ns`` is of one fork whose child ends at once: no handler of
    pthread_atfork or ``os.register_at_fork`` ran.
    """

    page_tables: int | None
    resident: int | None
    huge: int | None
    entries: int | None
    fork_ns: int | None


@dataclass(frozen=True)
class ForkRefusal:
    """What was not done: errno and reason, and of how many bytes (0 where it was the whole)."""

    errno: int
    why: str
    size: int


@dataclass(frozen=True)
class ForkReport:
    """What :func:`prepare_fork` found and did; sizes in bytes.

    ``method`` is ``collapse`` (it is done), ``advise`` (a kernel thread will do it: older than Linux 6.1) or
    None. ``mappings`` and ``candidates`` are those that could become huge: their number and size.
    ``taken`` became huge or was advised, ``sparse`` was left alone because too much of it is not in use,
    ``added`` is the memory that ``taken`` needs beyond what was in use.
    """

    before: ForkCost
    after: ForkCost
    method: Literal["collapse", "advise"] | None
    mappings: int
    candidates: int
    taken: int
    sparse: int
    added: int
    refused: tuple[ForkRefusal, ...]
    took_ns: int


def _lines(path: str) -> list[bytes]:
    with open(path, "rb") as file:
        return file.readlines()


def _sizes(path: str) -> dict[bytes, int]:
    """Return the fields of a file of /proc that are counted in kB; nothing where it cannot be read."""
    try:
        lines = _lines(path)
    except OSError:
        return {}
    words = ((line.partition(b":")[0], line.split()[1:]) for line in lines)
    return {key: int(more[0]) * 1024 for key, more in words if more[1:] == [b"kB"] and more[0].isdigit()}


def _block_size() -> int:
    """Return the size of a huge page. Raises OSError where the kernel makes none for whoever asks."""
    return int(_lines(_BLOCK)[0])


def _entries(anonymous: int | None, huge: int | None) -> int | None:
    if anonymous is None or huge is None:
        return None
    try:
        return (anonymous - huge) // mmap.PAGESIZE + (huge // _block_size() if huge else 0)
    except OSError:
        return None


def cost(*, measure: bool) -> ForkCost:
    """Look at what a fork copies; with ``measure`` make one."""
    fork_ns = None
    if measure:
        try:
            fork_ns = _binding.fork_ns()
        except OSError:
            pass
    status, rollup = _sizes("/proc/self/status"), _sizes("/proc/self/smaps_rollup")
    resident = rollup.get(b"Rss", status.get(b"VmRSS"))
    huge = rollup.get(b"AnonHugePages")
    return ForkCost(status.get(b"VmPTE"), resident, huge, _entries(rollup.get(b"Anonymous"), huge), fork_ns)


class _Work:
    """Makes memory huge, piece by piece, and adds up what came of it."""

    def __init__(self, room: int) -> None:
        self.room, self.added = room, room
        self.taken = self.sparse = self.mappings = self.candidates = 0
        self.method: Literal["collapse", "advise"] | None = None
        self._refused: dict[tuple[int, str], int] = {}

    def refuse(self, number: int, why: str, size: int = 0) -> None:
        """Note what was not done."""
        key = (number, why)
        self._refused[key] = self._refused.get(key, 0) + size

    @property
    def refused(self) -> tuple[ForkRefusal, ...]:
        """What was not done, each reason once."""
        return tuple(ForkRefusal(number, why, size) for (number, why), size in self._refused.items())

    def run(self) -> None:
        """Look at all mappings, and do what can be done."""
        try:
            block = _block_size()
            found = _mappings.candidates(_mappings.parse(_lines("/proc/self/smaps")), block)
        except OSError as problem:
            self.refuse(problem.errno or errno.EIO, f"{problem.strerror}: {problem.filename}")
            return
        collapses = _binding.knows_advice(_binding.MADV_COLLAPSE)
        advice = _binding.MADV_COLLAPSE if collapses else _binding.MADV_HUGEPAGE
        self.mappings, self.candidates = len(found), sum(one.end - one.start for one in found)
        try:
            for one in found:
                self._make(one, advice, block)
        except OSError as problem:  # what is in them cannot be seen
            self.refuse(problem.errno or errno.EIO, str(problem.strerror))
        if self.taken:
            self.method = "collapse" if collapses else "advise"

    def _make(self, one: _mappings.Mapping, advice: int, block: int) -> None:
        done = -one.huge  # what was huge before is taken again, and is no work of ours
        for start, end in _pieces(one, block):
            filled = block // _FILLED[1] * _FILLED[0]
            huge = _binding.make_huge(start, end, advice=advice, block=block, filled=filled, room=self.room)
            self.room = huge.room
            self.sparse += huge.sparse
            done += huge.taken
            if huge.refused:
                self.refuse(huge.errno, _why(huge.errno), huge.refused)
        self.taken += max(done, 0)


def _pieces(one: _mappings.Mapping, block: int) -> Iterator[tuple[int, int]]:
    """Cut a mapping into pieces at borders of blocks."""
    step = max(_PIECE // block, 1) * block
    start = -(-one.start // block) * block
    for at in range(start, one.end, step):
        yield at, min(at + step, one.end)


_WHY = {
    errno.EDQUOT: "more memory would be added than max_added allows",
    errno.EINVAL: "huge pages are off here: prctl(PR_SET_THP_DISABLE), or the kernel's settings",
    errno.ENOMEM: "no huge page is free, or the memory was unmapped meanwhile",
    errno.EBUSY: "the control group has no memory left",
    errno.EAGAIN: "pages are in use by the kernel just now",
}


def _why(number: int) -> str:
    return _WHY.get(number, os.strerror(number))


def prepare_fork(*, collapse: bool = True, measure: bool = True, max_added: int = ADDED) -> ForkReport:
    """Show what a fork of this process costs, and make it less by collapsing memory into huge pages.

    A fork copies an entry of the page tables for every 4 KiB that are mapped one by one, and one for
    every 2 MiB that are a huge page. ``collapse`` turns large private mappings into huge pages: the
    blocks of 2 MiB (the size is the kernel's, ``hpage_pmd_size``) of private, anonymous, writable memory
    of which 7/8 at least are in use by this process alone. Stacks, mappings of files, shared and locked
    memory, and what was told to stay as it is (``MADV_NOHUGEPAGE``, ``MADV_WIPEONFORK``,
    ``MADV_DONTFORK``) are left alone. What was not in use of such a block is then: ``max_added`` bounds
    that, in bytes. Without ``collapse`` it only looks.

    It costs the copying of that memory, a second or more for each GiB; other threads run meanwhile, and
    wait only for a block that they touch just then. Afterwards a write to a block that is shared with a
    child of fork gives up that huge page (before Linux 5.8 it copies all of it). Call it when the process
    has its memory, before forks that are to be fast, and before privileges are dropped; again when much
    has changed.

    ``measure`` times a fork before and after, whose child ends at once; meanwhile, as in every fork, other
    threads wait at their next page fault.

    Never raises for what cannot be seen or done: ``refused`` of the report says it. Raises TypeError and
    ValueError for a bad argument: ``max_added`` is from 0 to 2**62.
    """
    collapse, measure = flag("collapse", collapse), flag("measure", measure)
    work = _Work(integer("max_added", max_added, 0, 2**62))
    start, before = time.monotonic_ns(), cost(measure=measure)
    if collapse:
        work.run()
    after = cost(measure=measure) if work.taken else before
    return ForkReport(
        before,
        after,
        work.method,
        work.mappings,
        work.candidates,
        work.taken,
        work.sparse,
        work.added - work.room,
        work.refused,
        time.monotonic_ns() - start,
    )
