"""The Python process that is measured: as large and with as many threads as asked for, it spawns when told.

It is started by :mod:`safespawn.bench.peers` and speaks the protocol of programs/peer.rs on stdin and stdout.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safespawn

from . import machine, ways
from .pacer import Pacer
from .tools import SOURCES, Unable

#: Bytes that are written to after a spawn, to see what that costs: a page each.
_WINDOW = 1 << 20


class Given(NamedTuple):
    """What the process is to be. ``pool``: programs that our helper keeps ready, where we have one."""

    target: str
    stamp: str
    mib: int
    threads: int
    pages: str
    c_peer: str | None
    ledger: str | None
    pool: int


def hold(mib: int, pages: str) -> mmap.mmap:
    """Return that much private memory, each page written: huge pages if so asked, else none that are huge."""
    size = max(mib << 20, _WINDOW)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if pages == "huge":
        block.madvise(mmap.MADV_HUGEPAGE)
    elif pages == "small" or machine.huge_pages() == "always":
        block.madvise(mmap.MADV_NOHUGEPAGE)
    block[:: mmap.PAGESIZE] = b"\x5a" * (size // mmap.PAGESIZE)
    if pages == "prepared" and machine.huge_pages() == "always":
        block.madvise(mmap.MADV_HUGEPAGE)  # what was said above would hold off prepare_fork()
    return block


def prepare() -> None:
    """Have our own memory collapsed into huge pages. Raises Unable where this version cannot."""
    prepare_fork: Any = vars(safespawn).get("prepare_fork")
    if prepare_fork is None:
        raise Unable("this version has no prepare_fork")
    prepare_fork()


def idle(count: int) -> None:
    """Start threads that wait for something for ever."""
    for _ in range(count):
        threading.Thread(target=threading.Event().wait, daemon=True).start()


@contextlib.contextmanager
def helper(pool: int) -> Iterator[None]:
    """Have our helper run meanwhile, if this version has one: for its strategies, which fail without it."""
    made: Any = vars(safespawn).get("Helper")
    with contextlib.ExitStack() as stack:
        if made is not None:
            try:
                stack.enter_context(made(allow="any", pool=pool))
            except (OSError, ValueError) as problem:
                print(f"no helper here: {problem}", file=sys.stderr)
        yield


class Measures:
    """Takes samples of a way; every method returns the numbers for one sample, or those of all of them."""

    def __init__(self, given: Given, memory: mmap.mmap) -> None:
        self._given, self._memory = given, memory

    def command(self, who: str, *, stamped: bool = False) -> ways.Command:
        """Return what to start."""
        return ways.Command(self._given.target, self._given.stamp if stamped else None, who == "other")

    @staticmethod
    def run(way: ways.Way, command: ways.Command) -> None:
        """Start and wait."""
        started = way.start(command)
        if way.finish is not None:
            way.finish(started)

    def exit(self, way: ways.Way, who: str) -> list[int]:
        """Nanoseconds of the call, or -1 for one that waits, and until the end."""
        command = self.command(who)
        if way.sample is not None:
            return list(way.sample(command))
        before = time.monotonic_ns()
        started = way.start(command)
        called = time.monotonic_ns() - before
        if way.finish is None:
            return [-1, called]
        way.finish(started)
        return [called, time.monotonic_ns() - before]

    def exec(self, way: ways.Way, who: str) -> list[int]:
        """Nanoseconds until the program begins."""
        before = time.monotonic_ns()
        self.run(way, self.command(who, stamped=True))
        return [int.from_bytes(Path(self._given.stamp).read_bytes()[:8], sys.byteorder) - before]

    def faults(self, way: ways.Way, who: str) -> list[int]:
        """Nanoseconds to write to a MiB after a spawn; the page faults are counted from outside."""
        self.run(way, self.command(who))
        before = time.monotonic_ns()
        self._memory[0 : _WINDOW : mmap.PAGESIZE] = b"\x5b" * (_WINDOW // mmap.PAGESIZE)
        return [time.monotonic_ns() - before]

    def batch(self, way: ways.Way, who: str, many: int) -> list[int]:
        """Nanoseconds until so many are started, and until all have ended."""
        if way.finish is None:
            raise Unable("its call waits for the end")
        command = self.command(who)
        before = time.monotonic_ns()
        started = way.many(command, many) if way.many else [way.start(command) for _ in range(many)]
        called = time.monotonic_ns() - before
        for one in started:
            way.finish(one)
        return [called, time.monotonic_ns() - before]

    def stall(self, way: ways.Way, who: str, count: int) -> list[int]:
        """Nanoseconds of the longest stall of another thread, in each of these spawns."""
        with Pacer(self._memory) as pacer:
            return [pacer.longest_gap(lambda: self.run(way, self.command(who))) for _ in range(count)]

    def rate(self, way: ways.Way, who: str, count: int, many: int) -> list[int]:
        """Nanoseconds of the clock on the wall for one spawn, when so many threads make so many each."""
        command, problems, gate = self.command(who), [], threading.Barrier(many + 1)

        def work() -> None:
            gate.wait()
            try:
                for _ in range(count):
                    self.run(way, command)
            except (OSError, ValueError, Unable) as problem:
                problems.append(problem)

        spawners = [threading.Thread(target=work) for _ in range(many)]
        for spawner in spawners:
            spawner.start()
        gate.wait()
        before = time.monotonic_ns()
        for spawner in spawners:
            spawner.join()
        if problems:
            raise problems[0]
        return [(time.monotonic_ns() - before) // (count * many)]

    def hang(self, way: ways.Way) -> list[int]:
        """Nanoseconds of the longest stall of another thread while an exec hangs for a second."""
        with Pacer(self._memory) as pacer, hanging(Path(self._given.target)) as script:
            return [pacer.longest_gap(lambda: self.run(way, ways.Command(script, None, other=False)))]


@contextlib.contextmanager
def hanging(program: Path) -> Iterator[str]:
    """Yield a script whose exec hangs for a second: another process has a lease on its interpreter."""
    interpreter, script = program.with_name("interpreter"), program.with_name("script")
    interpreter.write_bytes(program.read_bytes())
    interpreter.chmod(0o755)
    script.write_text(f"#!{interpreter}\n", encoding="utf-8")
    script.chmod(0o755)
    words = [sys.executable, str(SOURCES / "holder.py"), str(interpreter), "1"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as holder:
        if holder.stdout is None or holder.stdout.readline() != "ready\n":
            raise Unable("no lease can be had on a file there")
        try:
            yield str(script)
        finally:
            holder.kill()


class Worker:
    """Answers what it is asked on stdin."""

    def __init__(self, given: Given, memory: mmap.mmap) -> None:
        sys.path.append(str(SOURCES))
        from children import task  # noqa: PLC0415 - beside this package: see there

        self._ours = ways.Ours()
        made = [*self._ours.ways(), *ways.standard(task), ways.nothing()]
        if given.c_peer:
            made += ways.c(given.c_peer)
        self._ways = {way.name: way for way in made}
        self._measures = Measures(given, memory)

    def answer(self, line: str) -> str:
        """Return the answer to MEASURE WAY WHO COUNT MANY: numbers, or "! " and why not."""
        what, name, who, count, many = line.split("\t")
        if what == "done":
            told = [f"{way}={times}" for way, times in self._ours.done.items()]
            self._ours.done.clear()
            return "\t".join(told)
        try:
            taken = self._taken(what, self._ways[name], who, int(count), int(many))
        except KeyError:
            return f"! no such way here: {name}"
        except Exception as problem:  # noqa: BLE001 - whatever a way raises is why it is not measured
            text = str(problem) if isinstance(problem, Unable) else f"{type(problem).__name__}: {problem}"
            return "! " + " ".join(text.split())
        return "\t".join(map(str, taken))

    def _taken(self, what: str, way: ways.Way, who: str, count: int, many: int) -> list[int]:
        measures = self._measures
        if what == "stall":
            return measures.stall(way, who, count)
        if what == "rate":
            return measures.rate(way, who, count, many)
        each: dict[str, Callable[[], list[int]]] = {
            "exit": lambda: measures.exit(way, who),
            "exec": lambda: measures.exec(way, who),
            "faults": lambda: measures.faults(way, who),
            "batch": lambda: measures.batch(way, who, many),
            "hang": lambda: measures.hang(way),
        }
        return [number for _ in range(count) for number in each[what]()]


def main(argument: str) -> None:
    """Become what the argument says (JSON of :class:`Given`), and answer until stdin ends.

    The first line on stdin says that we are in our place.
    """
    given = Given(**json.loads(argument))
    sys.stdin.readline()
    with contextlib.ExitStack() as stack:
        stack.enter_context(helper(given.pool))  # while we are small
        if given.ledger:
            stack.enter_context(safespawn.audit.open(given.ledger, "require"))
        memory = hold(given.mib, given.pages)
        idle(given.threads - 1)
        worker = Worker(given, memory)
        try:
            if given.pages == "prepared":
                prepare()
        except Unable as problem:
            print(f"! {problem}", flush=True)
            return
        gc.collect()
        print("ready", flush=True)
        for line in sys.stdin:
            print(worker.answer(line.rstrip("\n")), flush=True)
    # Idle threads never end, and children of multiprocessing must not be waited for.
    os._exit(0)
