"""The ways to start a program from a Python process: ours, the standard library's, and C's through ctypes."""

from __future__ import annotations

import ctypes
import errno
import functools
import multiprocessing
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import safespawn

from .tools import Unable

#: The user and group that own nothing, on every Linux; all that a program must give up to be them.
_NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}

#: Seconds: never reached by the target.
_DEADLINE = 5.0

#: Our strategies, by what the option is given. Not every version has them all.
STRATEGIES = ("vfork", "fork", "launcher", "posix_spawn", "clone", "helper", "pool")

#: For the stall of another thread: what the machine does to it when nothing is spawned.
NOTHING = "nothing but a sleep of 1 ms"


class Command(NamedTuple):
    """The target, the file that it writes its beginning to (or None), and whether as another user."""

    target: str
    stamp: str | None
    other: bool

    @property
    def argv(self) -> list[str]:
        """The words of the command."""
        return [self.target, *([self.stamp] if self.stamp else [])]

    @property
    def who(self) -> dict[str, Any]:
        """The keywords that our functions and those of subprocess have for the user."""
        return _NOBODY if self.other else {}


class Way(NamedTuple):
    """A way: starts a program, and waits for its end.

    ``finish`` None: ``start`` returns at the end only. ``sample``: times itself and returns nanoseconds of
    the call and until the end. ``many``: starts that many at once. All raise what the way raises, Unable for
    what it has no means for.
    """

    name: str
    start: Callable[[Command], Any]
    finish: Callable[[Any], object] | None = None
    sample: Callable[[Command], tuple[int, int]] | None = None
    many: Callable[[Command, int], Sequence[Any]] | None = None


def ended_well(code: int | None) -> None:
    """Raise Unable for a program that did not end with 0: what was measured is no start of it then."""
    if code != 0:
        raise Unable(f"the program ended with {code}")


# ---------------------------------------------------------------------- ours


class Ours:
    """Our ways. ``done`` counts what our reports say was done."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()

    def _note(self, report: safespawn.SpawnReport | None) -> None:
        if report is not None:
            self.done[f"{report.strategy}, {report.proof or 'no proof'}"] += 1

    def _run(self, command: Command, **options: Any) -> None:
        done = safespawn.run(command.argv, **command.who, **options)
        self._note(done.report)
        ended_well(done.returncode)

    def _face(self, command: Command) -> None:
        done = safespawn.subprocess.run(command.argv, check=False, **command.who)
        ended_well(done.returncode)

    @staticmethod
    def _spawn(command: Command, **options: Any) -> safespawn.Process:
        return safespawn.spawn(command.argv, **command.who, **options)

    def _wait(self, process: safespawn.Process) -> None:
        self._note(process.report)
        ended_well(process.wait())

    @staticmethod
    def _batch(command: Command, count: int) -> Sequence[Any]:
        spawn_many: Any = vars(safespawn).get("spawn_many")
        made: Any = vars(safespawn).get("Command")
        if spawn_many is None or made is None:
            raise Unable("this version has no spawn_many")
        started: Sequence[Any] = spawn_many(
            [made(command.argv, **command.who) for _ in range(count)], at_once=count
        )
        return started

    def ways(self) -> Iterator[Way]:
        """Yield them. What this version does not have fails when it is tried."""
        yield Way("safespawn.spawn", self._spawn, self._wait)
        yield Way("safespawn.run", self._run)
        yield Way("safespawn.run, deadline", functools.partial(self._run, deadline=_DEADLINE))
        yield Way("safespawn.subprocess.run", self._face)
        for strategy in STRATEGIES:
            start = functools.partial(self._spawn, strategy=strategy)
            yield Way(f"safespawn.spawn, {strategy}", start, self._wait)
        yield Way(
            "safespawn.spawn_many",
            lambda command: self._batch(command, 1)[0],
            self._wait,
            many=self._batch,
        )


# ---------------------------------------------------------------------- the standard library's


def _run(command: Command) -> None:
    ended_well(subprocess.run(command.argv, check=False, **command.who).returncode)


def _popen(command: Command) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command.argv, **command.who)


def _posix_spawn(command: Command) -> int:
    if command.other:
        raise Unable("os.posix_spawn cannot change the user")
    return os.posix_spawn(command.target, command.argv, os.environ)


def _wait(pid: int) -> None:
    ended_well(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _child(method: str, task: Callable[[str | None], None], command: Command) -> Any:
    if command.other:
        raise Unable("multiprocessing cannot change the user")
    made: Any = multiprocessing.get_context(method)
    process = made.Process(target=task, args=(command.stamp,))
    process.start()
    return process


def _join(process: Any) -> None:
    process.join()
    ended_well(process.exitcode)
    process.close()


def standard(task: Callable[[str | None], None]) -> Iterator[Way]:
    """Yield those of Python.

    Children of multiprocessing run no program: they call ``task`` with the stamp.
    """
    yield Way("subprocess.run", _run)
    yield Way("subprocess.Popen", _popen, lambda process: ended_well(process.wait()))
    yield Way("os.posix_spawn", _posix_spawn, _wait)
    for method in ("fork", "forkserver", "spawn"):
        yield Way(f"multiprocessing, {method}", functools.partial(_child, method, task), _join)


# ---------------------------------------------------------------------- C's

#: In the order of `enum way` in programs/peer.c; the last one, a fork without an exec, is for the program
#: only.
C_WAYS = ("C fork, execve", "C vfork, execve", "C posix_spawn")


def _no_less(answer: int) -> int:
    if answer == -errno.EPROTO:
        raise Unable("the program did not end with 0, or may not become another user")
    if answer < 0:
        raise Unable(os.strerror(-answer))
    return answer


def c(library: str) -> Iterator[Way]:
    """Yield those of C, called without the interpreter's lock as any library is.

    Raises OSError if it is none.
    """
    peer = ctypes.CDLL(library)

    def apart(number: int, command: Command) -> None:
        if command.other and number:
            raise Unable("a child on the parent's memory must not change its user")

    def start(number: int, command: Command) -> int:
        apart(number, command)
        stamp = os.fsencode(command.stamp) if command.stamp else None
        pid: int = peer.peer_start(os.fsencode(command.target), stamp, number, int(command.other))
        return _no_less(pid)

    def finish(pid: int) -> None:
        _no_less(peer.peer_finish(pid))

    def sample(number: int, command: Command) -> tuple[int, int]:
        apart(number, command)
        took = (ctypes.c_int64 * 2)()
        _no_less(peer.peer_sample(os.fsencode(command.target), None, number, int(command.other), took))
        return took[0], took[1]

    for number, name in enumerate(C_WAYS):
        yield Way(name, functools.partial(start, number), finish, functools.partial(sample, number))


def nothing() -> Way:
    """Return what is compared with for the stall of another thread."""
    return Way(NOTHING, lambda _: time.sleep(0.001))
