"""Runs the mirrors of a ledger, each in a thread of its own, and the heartbeat."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from ..._surely import keep
from ..._values import shown
from ._checked import seconds
from ._mirror import Mirror
from ._worker import Feed, Tell, Worker

#: How often somebody looks for mirrors that hang, in seconds.
_WATCH_SECONDS = 5.0

#: Blocking these would keep a fault of the thread itself from its handler.
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """A thread that is started inside takes no signal that is meant for the application's."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Runner:
    """The mirrors of one ledger in this process.

    ``feed`` makes a reader of the ledger's lines for one mirror, from now on. ``tell``
    writes a record, ``mirror.down`` or ``mirror.up``, once for each change; it is called in
    the mirrors' threads. ``on_idle`` is called every ``idle_seconds`` in one more thread, for
    a checkpoint where nothing else happens. ``process`` tells forked processes apart.
    Raises TypeError or ValueError.
    """

    def __init__(
        self,
        mirrors: Sequence[Mirror],
        feed: Callable[[], Feed],
        tell: Tell,
        *,
        on_idle: Callable[[], object],
        idle_seconds: float = 60.0,
        process: Callable[[], int] = os.getpid,
    ) -> None:
        self._mirrors = _checked(mirrors)
        self._feed = feed
        self._tell = tell
        self._on_idle = on_idle
        self._idle_seconds = seconds("idle_seconds", idle_seconds)
        self._number = process
        self._reset()

    def _reset(self) -> None:
        self._process = self._number()
        self._workers: list[Worker] = []
        self._heart: threading.Thread | None = None
        self._running = False
        self._ended = threading.Event()
        self._changing = threading.Lock()

    def start(self) -> None:
        """Open the mirrors and start the threads that are missing.

        Raises nothing: a mirror that cannot work is down. Costs next to nothing where all
        run, so it may stand before each record: after a fork it starts them anew.
        """
        if self._running and self._process == self._number():
            return
        if self._process != self._number():  # a fork that Python has not seen
            self.after_fork()
        if self._ended.is_set():
            return
        held: list[bool] = []
        try:
            # A signal handler may come here while its own thread is in here.
            keep(held, self._changing.acquire, False)
            if True in held:
                self._start()
        finally:
            if True in held:
                self._changing.release()

    def _start(self) -> None:
        if not self._workers:
            self._workers = [Worker(mirror, self._feed(), self._tell) for mirror in self._mirrors]
            for worker in self._workers:
                worker.open()
        with _signals_blocked():
            started = [worker.start() for worker in self._workers]
            self._running = all([*started, self._start_heart()])

    def _start_heart(self) -> bool:
        if self._heart is None:
            heart = threading.Thread(target=self._beat, name="safespawn-heartbeat", daemon=True)
            try:
                heart.start()
                self._heart = heart
            except RuntimeError:  # as in Worker.start
                return False
        return True

    def counts(self) -> dict[str, dict[str, int | str | None]]:
        """Return for each mirror what it ``accepted`` and ``dropped``, and why it is ``down``, or None.

        What was lost before the mirror's thread got to it counts as dropped, of whatever
        event it was.
        """
        counted = {worker.mirror.name: worker for worker in self._workers}
        told: dict[str, dict[str, int | str | None]] = {}
        for mirror in self._mirrors:
            worker = counted.get(mirror.name)
            told[mirror.name] = {
                "accepted": worker.accepted if worker else 0,
                "dropped": worker.dropped if worker else 0,
                "down": worker.health.down if worker else None,
            }
        return told

    def stop(self, timeout: float) -> dict[str, int]:
        """Hand over what is there for at most ``timeout`` seconds, and end the threads.

        Returns how many lines were left for each mirror, which count as dropped. A thread
        that hangs is left behind. From now on nothing is told and nothing started.
        """
        deadline = time.monotonic() + timeout
        self._ended.set()
        self._running = False
        held: list[bool] = []
        try:
            # Whoever is in here may be the code that a signal handler has interrupted: not for good.
            keep(held, self._changing.acquire, True, timeout)
            for worker in self._workers:
                worker.ask_to_end(deadline)
            left = {worker.mirror.name: worker.join() for worker in self._workers}
            if self._heart is not None and self._heart is not threading.current_thread():
                self._heart.join(max(0.0, deadline - time.monotonic()))
        finally:
            if True in held:
                self._changing.release()
        return left

    def after_fork(self) -> None:
        """In a forked child: the threads are gone, the counters start at 0, the descriptors are the parent's.

        Nothing is started: most children exec at once.
        """
        ended = self._ended.is_set()
        for worker in self._workers:
            worker.forget()
        self._reset()
        if ended:
            self._ended.set()

    def _beat(self) -> None:
        next_idle = time.monotonic() + self._idle_seconds
        while not self._ended.wait(min(_WATCH_SECONDS, max(0.0, next_idle - time.monotonic()))):
            for worker in self._workers:
                worker.watch()
            if time.monotonic() >= next_idle:
                with contextlib.suppress(Exception):  # the ledger tells of its own troubles
                    self._on_idle()
                next_idle = time.monotonic() + self._idle_seconds


def _checked(mirrors: Sequence[Mirror]) -> tuple[Mirror, ...]:
    for mirror in mirrors:
        if not isinstance(mirror, Mirror):
            raise TypeError(
                f"mirrors must be instances of Mirror, not {shown(mirror)} ({type(mirror).__name__})"
            )
    names = [mirror.name for mirror in mirrors]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"more than one mirror has the name {', '.join(sorted(twice))}")
    return tuple(mirrors)
