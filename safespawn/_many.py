"""Many programs in one call, started side by side: ``spawn_many``."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, overload

from . import _binding, _child, _spawn, _streams, _values, guards
from ._command import Command, to_start
from ._errors import SpawnError
from ._process import Process
from ._spec import Request, Word
from ._surely import surely
from .audit._core import process_number

#: How many children share memory at the same time, unless the caller says otherwise. More make nothing
#: faster where there are few processors (bench/many.py), and hold what a change of credentials waits for.
AT_ONCE = 16

#: Errors of just these classes come, without a report, from our own look at a request, or from a hook of
#: sys.audit that says no. What a signal handler raises, a TimeoutError above all, is no failure of a command.
_PLAIN = (OSError, PermissionError, FileNotFoundError, ValueError, KeyError)

Result = Process | Exception


class SpawnManyError(SpawnError):
    """Some commands of a :func:`spawn_many` failed, and the others run.

    ``results`` has the handle or the exception of each command, in their order; ``errno`` and
    ``__cause__`` are those of the first that failed.
    """

    results: tuple[Process | Exception, ...] = ()


@overload
def spawn_many(
    commands: Iterable[Command | Iterable[Word]], *, at_once: int = ..., return_errors: Literal[False] = ...
) -> list[Process]: ...


@overload
def spawn_many(
    commands: Iterable[Command | Iterable[Word]], *, at_once: int = ..., return_errors: bool
) -> list[Process | Exception]: ...


def spawn_many(
    commands: Iterable[Command | Iterable[Word]], *, at_once: int = AT_ONCE, return_errors: bool = False
) -> list[Process] | list[Process | Exception]:
    """Start programs side by side and return their handles, in the order of the commands.

    A command is a :class:`Command`, or a sequence of arguments for one without options. Each has its own
    decision, records and report, as with :func:`spawn`; where that would be strategy ``vfork`` by choice
    it is ``clone``. One whose child needs memory of its own, or that names another strategy, is started
    alone when its turn comes.

    ``at_once``, from 1 to 64, bounds how many children share our memory at the same time. It does not
    bound how many programs run: at the end all do.

    All commands are attempted. If some fail :class:`SpawnManyError` is raised when the others run, with
    what came of each in ``results``; with ``return_errors`` the list has the exceptions instead. A
    malformed command refuses the call before anything is started: TypeError or ValueError that names its
    index, or OSError E2BIG. Any other exception, such as that of a signal handler, ends the call: what
    was not started is not started, and ``results`` is put on it, None for what was not.
    """
    bound = _values.integer("at_once", at_once, 1, _binding.BATCH_MAX)
    wants_errors = _values.flag("return_errors", return_errors)
    requests = [to_start(i, one) for i, one in enumerate(_values.iterable("commands", commands))]
    batch = _Batch(requests, bound)
    try:
        batch.run()
        if batch.failed and not wants_errors:
            raise _failure(batch)
        return [one for one in batch.results() if one is not None]
    except BaseException as problem:
        surely(batch.rescue)
        vars(problem)["results"] = batch.results()
        raise
    finally:
        vars(batch).clear()  # the frames of an exception that is kept lead to it, and it to that


def _failure(batch: _Batch) -> SpawnManyError:
    count, index = len(batch.results()), min(batch.failed)
    first = batch.failed[index]
    text = f"{len(batch.failed)} of {count} commands failed, the first is commands[{index}]: {first}"
    made = SpawnManyError(getattr(first, "errno", None) or errno.EIO, text)
    made.__cause__ = first
    return made


@dataclass(eq=False)
class _Start:
    """One command between its decision and its end."""

    index: int
    job: _spawn.Job
    streams: _streams.Streams
    child: _child.Child
    slot: _binding.Slot = field(default_factory=_binding.Slot)
    call: _binding.Call | None = None
    #: Since when it waits for its turn: its deadline is not for waiting on others.
    ready_ns: int = 0

    @property
    def is_beside(self) -> bool:
        """Whether it may start side by side with others. A bounded lookup can lose the proof for that."""
        return self.job.decision.strategy == "clone"

    def postponed(self, now: int) -> _binding.Call:
        """Return what is to be called, with as much time as there was when the wait began."""
        assert self.call is not None  # noqa: S101 - or an exception of its own has taken it away
        waited, self.ready_ns = now - self.ready_ns, now
        self.call.postpone(waited)
        self.job.deadline_ns += waited if self.job.deadline_ns else 0
        return self.call


#: Descriptors that a command has at most before it runs: six for pipes, its program, directory and pidfd.
_NUMBERS = 10


def _free_numbers() -> int:
    """Return how many more descriptors we can open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        return (limit if limit >= 0 else 1 << 30) - len(os.listdir("/proc/self/fd"))
    except OSError:  # no /proc: what is too much fails, and is told
        return 1 << 30


def _is_its_own(problem: BaseException) -> bool:
    """Whether an exception tells what came of a command, and is not somebody else's."""
    return isinstance(problem, SpawnError) or "report" in vars(problem)


def _is_no_start(problem: BaseException) -> bool:
    """The same of one that came before there was a child."""
    return _is_its_own(problem) or type(problem) in _PLAIN


class _Batch:
    """One call of ``spawn_many``, command by command and piece by piece."""

    def __init__(self, requests: list[Request], bound: int) -> None:
        """Nothing is begun."""
        self._requests, self._bound = requests, bound
        #: What came of them, by their index.
        self.running: dict[int, Process] = {}
        self.failed: dict[int, Exception] = {}
        #: Announced, in order, and nothing of them runs yet; the last one may be about to be.
        self._waiting: list[_Start] = []
        self._arenas = _binding.Arenas()
        #: Who was asked. A signal handler may fork, and its child go on here: it starts nothing.
        self._process = process_number()
        #: Descriptors that are free, as far as we know: not less, in a process that opens nothing meanwhile.
        self._free = 0

    def run(self) -> None:
        """Attempt all of them."""
        for index, request in enumerate(self._requests):
            job = self._decided(index, request)
            if job is None:
                continue
            alone = job.decision.strategy != "clone"
            if alone:
                self._start_waiting()  # in order
            self._make_ready(index, job)
            alone = job.decision.strategy != "clone"  # its lookup may have lost the proof
            if alone or len(self._waiting) >= self._bound or self._is_short_of_numbers():
                self._start_waiting()
        self._start_waiting()

    def results(self) -> tuple[Result | None, ...]:
        """Return what came of each; None for what was not started."""
        return tuple(self.running.get(i) or self.failed.get(i) for i in range(len(self._requests)))

    def _decided(self, index: int, request: Request) -> _spawn.Job | None:
        if process_number() != self._process:
            raise OSError(errno.ECHILD, _spawn.FORKED)
        try:
            job = _spawn.decided(request)
        except Exception as problem:
            if not _is_no_start(problem):
                raise
            self.failed[index] = problem
            return None
        job.process = self._process
        job.decide(guards.beside(request, job.decision))
        return job

    def _make_ready(self, index: int, job: _spawn.Job) -> None:
        """Have one wait that is announced, or tell what hinders it."""
        try:
            streams = _spawn.pipes(job)
            start = _Start(index, job, streams, _child.Child(job.sid))
            self._waiting.append(start)
            call = _spawn.ready(job, streams)
            _spawn.announce(job, call)
            start.call, start.ready_ns = call, time.monotonic_ns()
        except Exception as problem:
            _spawn.explain(job, problem)
            if not _is_no_start(problem):
                raise
            self.failed[index] = problem
            if self._waiting and self._waiting[-1].index == index:
                self._fail(self._waiting[-1])

    def _is_short_of_numbers(self) -> bool:
        """Whether those that wait should start now, because few descriptors are left for one more.

        Each of them has its program open until it is started, and needs one more for its pidfd.
        """
        self._free -= _NUMBERS
        if self._free < _NUMBERS:
            self._free = _free_numbers()
        return self._free < _NUMBERS + len(self._waiting)

    def _start_waiting(self) -> None:
        """Start those that wait, side by side if there are several, and make of each what it came to."""
        now = time.monotonic_ns()
        calls = [(start, start.postponed(now)) for start in self._waiting]
        beside = [(call, start.slot) for start, call in calls if start.is_beside]
        if len(beside) > 1:
            _binding.spawn_batch(beside, self._arenas, self._process)
        for start, call in calls:
            if len(beside) == 1 or not start.is_beside:
                _spawn.start_by(start.job, call, start.slot)
        ended = time.monotonic_ns()
        for start in self._waiting:
            start.ready_ns = ended
        while self._waiting:
            self._conclude(self._waiting[0])

    def _conclude(self, start: _Start) -> None:
        job, slot, child = start.job, start.slot, start.child
        call = start.postponed(time.monotonic_ns())  # those before it may have begun anew
        try:
            report = _spawn.conclude(job, call, slot, child, slot.outcome())
            self.running[start.index] = Process(child, job.request.words, report, start.streams)
            _spawn.record_start(job, slot, child, report)
            _spawn.lose_unseen(child)
        except Exception as problem:
            if not _is_its_own(problem):
                raise
            self.failed[start.index] = problem
            self._fail(start)
        else:
            self._done(start)

    def _fail(self, start: _Start) -> None:
        """Leave nothing of one that runs no program."""
        surely(lambda: _spawn.settle(start.job, start.slot, start.child))
        start.streams.abort()
        self._done(start)

    def _done(self, start: _Start) -> None:
        _spawn.release(start.job, start.streams)
        self._waiting.remove(start)

    def rescue(self) -> None:
        """After an exception that ends the call: what runs gets its handle, all that was begun its record."""
        while self._waiting:
            start = self._waiting[0]
            if not start.slot.ran:
                self._fail(start)
                continue
            if start.index not in self.running:
                self._keep_late(start)
            _spawn.tell_end(start.job, start.slot, start.child)
            _spawn.lose_unseen(start.child)
            self._done(start)

    def _keep_late(self, start: _Start) -> None:
        job, child = start.job, start.child
        child.booked = job.intent.booked
        child.adopt(start.slot)
        job.outcome = start.slot.outcome()
        job.heed_doubt(job.outcome)
        report = partial(job.report, "exec", "exec")
        self.running[start.index] = Process(child, job.request.words, report, start.streams)
