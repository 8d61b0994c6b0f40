"""The process that is under load: a ledger, two helpers, and threads that do all at once. Run by soak.py.

Says one JSON object a line to a descriptor that it is given: how it stands, every half second, and at the end what it found.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import safespawn
from safespawn import _binding, audit

import crowd
import jobs
import planted
from book import Book

SPAWNERS = 6
#: Seconds between two spawns of one thread, on average.
PAUSE = 0.03
TOLD_EVERY = 0.5
#: Seconds for what was dropped or killed to be gone at the end.
SETTLES = 30


#: Where to, once it is known.
_SAY = [-1]


def say(**what: Any) -> None:
    """Write one line to who started us."""
    os.write(_SAY[0], json.dumps(what).encode() + b"\n")


class _Allocated(ctypes.Structure):
    """struct mallinfo2 of mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def allocated_kib() -> int:
    """Return what libc has given out: how many pages that takes is chance to a part."""
    told = ctypes.CDLL(None).mallinfo2
    told.restype = _Allocated
    seen = told()
    return (seen.uordblks + seen.hblkhd) // 1024


def descriptors() -> dict[str, int]:
    """Return how many descriptors are open, by what they lead to."""
    seen: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            to = os.readlink(f"/proc/self/fd/{name}")
            seen[to.split("[")[0] if to.startswith(("pipe:", "socket:")) else to] += 1
    return dict(seen)


def children() -> list[str]:
    """Return the children that there are, each with its state."""
    found = []
    for pid in map(str, crowd._children()):
        with contextlib.suppress(OSError):
            found.append(" ".join(Path(f"/proc/{pid}/stat").read_text().split()[:3]))
    return found


def settled(book: Book) -> list[str]:
    """Wait until no child is left; return those that are there all the same."""
    end = time.monotonic() + SETTLES
    while (left := children()) and time.monotonic() < end:
        token = book.begin("settling")
        book.end(token, f"code:{safespawn.run(['/bin/true', token]).returncode}")  # reaps what was dropped
        time.sleep(0.01)
    return left


class Subject:
    """What all threads share."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.setup = setup
        self.book = Book(Path(setup["book"]))
        self.ledger = audit.open(setup["ledger"], "require", keys=setup["keys"])
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.asleep: jobs.Sleepers = jobs.queue.Queue()
        self.stop = threading.Event()

    def spawn_one(self, dice: random.Random) -> None:
        """Do one job, and a seeded fault with it at times."""
        job = dice.choices([job for job, _ in jobs.JOBS], [weight for _, weight in jobs.JOBS])[0]
        job(self.book, dice)
        if self.setup["faults"] and dice.random() < 0.3:
            planted.FAULTS[dice.choice(self.setup["faults"])](self.book)

    def loop_of_coroutines(self) -> None:
        """Start programs in a loop of a thread of its own."""

        async def main() -> None:
            dice = random.Random("aio")
            while not self.stop.is_set():
                await jobs.several(self.book, dice)
                await asyncio.sleep(dice.random() * 0.2)

        try:
            asyncio.run(main())
        except BaseException as problem:  # noqa: BLE001 - it is told
            self.problems.append(f"aio raised {problem!r}")

    def threads(self, several: list[safespawn.Helper]) -> list[threading.Thread]:
        """Return all, not started yet."""
        counts, book, dice = self.counts, self.book, random.Random

        def looped(name: str, pause: float, do: Any) -> threading.Thread:
            return crowd.repeat(name, do, pause, self.stop, self.problems)

        dices = [dice(f"spawner {i}") for i in range(SPAWNERS)]
        any_of = dice("killers")
        return [
            *(looped(f"spawner {i}", PAUSE, lambda i=i: self.spawn_one(dices[i])) for i in range(SPAWNERS)),
            threading.Thread(target=self.loop_of_coroutines, name="aio"),
            looped("sleepers", 0.1, lambda: jobs.sleeper(book, any_of, self.asleep)),
            looped("changer 1", 0.05, lambda d=dice(1): crowd.change(counts, d)),
            looped("changer 2", 0.05, lambda d=dice(2): crowd.change(counts, d)),
            looped(
                "forker 1", 0.4, lambda d=dice(3): crowd.fork(counts, d, book, self.ledger, self.problems)
            ),
            looped(
                "forker 2", 0.4, lambda d=dice(4): crowd.fork(counts, d, book, self.ledger, self.problems)
            ),
            looped("killer", 0.2, lambda d=dice(5): crowd.kill_any(counts, d)),
            looped("killer of parked", 1.0, lambda d=dice(6): crowd.kill_parked(counts, d, several)),
            looped("killer of helpers", 1.5, lambda d=dice(7): crowd.kill_helper(counts, d.choice(several))),
            looped("killer of sleepers", 0.02, self.end_sleepers),
            looped("rotator", 1.0, lambda: crowd.rotate(counts, self.ledger)),
        ]

    def end_sleepers(self) -> None:
        """End those that sleep."""
        while not self.asleep.empty():
            crowd.end_sleeper(
                self.counts, random.Random(self.counts["sleepers ended"]), self.book, self.asleep
            )

    def warm(self) -> None:
        """Do everything once, so that what is opened and imported for good is there."""
        dice = random.Random("warm")
        with safespawn.Helper(pool=2), safespawn.Helper():
            for job, _ in jobs.JOBS:
                job(self.book, dice)
            for _ in range(len(jobs.STRATEGIES) * 3):
                jobs.by_strategy(self.book, dice)
            jobs.sleeper(self.book, dice, self.asleep)
            self.end_sleepers()
            crowd.fork(self.counts, dice, self.book, self.ledger, self.problems)
            asyncio.run(jobs.several(self.book, dice))
            self.ledger.rotate()
        self.counts.clear()

    def run(self, seconds: float) -> None:
        """Have all at it for so long."""
        with safespawn.Helper() as plain, safespawn.Helper(pool=2) as pooled:
            threads = self.threads([plain, pooled])
            say(phase="begun", threads=len(threads))
            for thread in threads:
                thread.start()
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(left, TOLD_EVERY))
                lock = _binding.lock_status()
                say(
                    phase="running",
                    spawns=self.book.ended,
                    allocated=allocated_kib(),
                    helpers=[pooled.pid, plain.pid],
                    asked=[pooled.status()["asked"], plain.status()["asked"]],
                    **{name: lock[name] for name in ("epoch", "changes", "overlaps", "spawners", "changers")},
                )
            self.stop.set()
            for thread in threads:
                thread.join()
            self.end_sleepers()
            say(phase="stopped")


def main() -> None:
    """Run as soak.py says."""
    setup = json.loads(sys.argv[1])
    _SAY[0] = setup["say"]
    os.set_inheritable(setup["say"], False)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    warnings.simplefilter("ignore", ResourceWarning)  # of handles that are dropped on purpose
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which are wanted too
    os.setgroups([])
    crowd.held()
    subject = Subject(setup)
    safespawn.install()
    subject.warm()
    settled(subject.book)
    before = descriptors()
    subject.run(setup["seconds"])
    left = settled(subject.book)
    after = descriptors()
    lock = _binding.lock_status()
    safespawn.uninstall()
    lost = subject.ledger.lost
    subject.ledger.close()
    say(
        phase="ended",
        counts=subject.counts,
        problems=subject.problems,
        before=before,
        after=after,
        children=left,
        lost=lost,
        lock={
            name: lock[name]
            for name in ("state", "spawners", "changers", "changer_waits", "overlaps", "changes")
        },
    )


if __name__ == "__main__":
    main()
