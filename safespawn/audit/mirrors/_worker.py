"""One mirror's thread: takes lines, hands them over, counts, and outlives whatever goes wrong."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from ..._surely import keep
from . import _line
from ._health import Health
from ._link import Link, Paused
from ._mirror import Mirror

#: How often a mirror is asked how it is, in seconds.
CHECK_SECONDS = 5.0
#: A mirror that has not come back from one call for so long hangs, in seconds.
HANG_SECONDS = 10.0


class Feed(Protocol):
    """Where a mirror's lines come from: a ring that never waits for its reader."""

    def take(self, timeout: float) -> tuple[list[bytes], int]:
        """Return the lines since the last call, and how many were lost before them.

        Waits for the first one at most ``timeout`` seconds. The lines have no newline.
        """

    def wake(self) -> None:
        """Have a call of :meth:`take` that waits return now."""


#: Writes a record: its event and its fields.
Tell = Callable[[str, Mapping[str, str | int | None]], object]


def _reason(problem: BaseException) -> str:
    if isinstance(problem, OSError) and problem.errno is not None:
        return f"{problem.strerror} ({errno.errorcode.get(problem.errno, problem.errno)})"
    return f"{type(problem).__name__}: {problem}"


class Worker:
    """The thread of one mirror, and what it has counted."""

    def __init__(self, mirror: Mirror, feed: Feed, tell: Tell) -> None:
        self.mirror = mirror
        self.accepted = 0
        self.dropped = 0
        self.health = Health()
        self._link = Link(mirror)
        self._feed = feed
        self._tell = tell
        self._thread: threading.Thread | None = None
        self._look_at = 0.0
        #: Whether the last line was refused over an open connection.
        self._refused = False
        #: Why it is down, where that is to be told by its own thread.
        self._untold: str | None = None
        self._deadline: float | None = None
        self._given_up = False
        #: Lines that were taken from the feed and are not counted yet.
        self._in_hand = 0
        self._counting = threading.Lock()
        self._taking = threading.Lock()

    # ------------------------------------------------------- called by others

    def open(self) -> None:
        """Open the mirror for the first time; it is tried again later if that fails.

        Tells nobody: whoever opens a ledger may hold what a record needs.
        """
        try:
            self._link.open()
        except BaseException as problem:  # noqa: BLE001 - as in _pass_on
            self._fail(_reason(problem))

    def start(self) -> bool:
        """Start its thread if it has none; return whether it has one now."""
        if self._thread is None:
            name = f"safespawn-mirror-{self.mirror.name}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError as problem:  # a limit of tasks, or the interpreter is ending
                self._fail(f"no thread: {problem}")
        return self._thread is not None

    def forget(self) -> None:
        """Let go of what the parent has open, in a forked child."""
        with contextlib.suppress(Exception):
            self.mirror.forget()

    def watch(self) -> None:
        """Tell of a mirror that does not come back: its own thread cannot."""
        since = self._link.busy_since
        if since is not None and time.monotonic() - since >= HANG_SECONDS:
            self._ill(f"has not come back for {int(time.monotonic() - since)} seconds")

    def ask_to_end(self, deadline: float) -> None:
        """Have it hand over what is there until ``deadline`` (of the monotonic clock), then end."""
        self._deadline = deadline

    def join(self) -> int:
        """Wait for its end until the deadline; return how many lines were left, and are dropped."""
        deadline = self._deadline or 0.0
        if self._thread is None:
            self._close()
        elif self._thread is not threading.current_thread():
            while self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
                self._feed.wake()
                self._thread.join(min(left, 0.05))
        return self._give_up()

    def _give_up(self) -> int:
        """Drop whatever is not counted yet; a thread that hangs counts nothing any more."""
        with self._counting:
            self._given_up = True
        left = self._left_in_feed()
        # After that: a thread that was taking lines has them in hand now.
        left += self._in_hand
        self._in_hand = 0
        self.dropped += left
        return left

    def _left_in_feed(self) -> int:
        held: list[bool] = []
        try:
            keep(held, self._taking.acquire, True, 0.1)
            if True not in held:
                return 0
            lines, skipped = self._feed.take(0)
        except Exception:  # noqa: BLE001 - the thread has told of it
            return 0
        finally:
            if True in held:
                self._taking.release()
        return sum(map(self._is_wanted, lines)) + skipped

    # ------------------------------------------------------------ its thread

    def _run(self) -> None:
        if self._untold is not None:
            self._say("mirror.down", self._untold)
        try:
            while self._round():
                pass
        except BaseException as problem:  # noqa: BLE001 - the feed's, and nobody else would see it
            self._ill(f"its thread has ended: {_reason(problem)}")
        self._close()

    def _round(self) -> bool:
        """Take what is there and pass it on; return whether there is to be another round."""
        ending = self._deadline is not None
        if not ending:
            self._look()
        lines, skipped = self._take()
        self._count(dropped=skipped)
        for line in lines:
            if self._is_late():
                return False
            self._pass_on(line)
        return not self._is_late() and (bool(lines) or not ending)

    def _is_late(self) -> bool:
        return self._given_up or (self._deadline is not None and time.monotonic() >= self._deadline)

    def _take(self) -> tuple[list[bytes], int]:
        with self._taking:
            if self._given_up:
                return [], 0
            wait = 0.0 if self._deadline is not None else max(0.0, self._look_at - time.monotonic())
            lines, skipped = self._feed.take(wait)
            wanted = [line for line in lines if self._is_wanted(line)]
            self._in_hand = len(wanted)
        return wanted, skipped

    def _is_wanted(self, line: bytes) -> bool:
        if self.mirror.events is None:
            return True
        try:
            return _line.envelope(line).event in self.mirror.events
        except OSError:
            return True  # no record: the mirror refuses it, and that is counted

    def _pass_on(self, line: bytes) -> None:
        try:
            self._link.send(line, was_well=self.health.down is None)
        except Paused:
            self._count(dropped=1, settled=1)
        except BaseException as problem:  # noqa: BLE001 - a handler's bug must not end the mirror
            self._count(dropped=1, settled=1)
            self._refused = self._link.is_open
            self._ill(_reason(problem))
        else:
            self._count(accepted=1, settled=1)
            self._refused = False
            self._well()

    def _count(self, *, accepted: int = 0, dropped: int = 0, settled: int = 0) -> None:
        with self._counting:
            if not self._given_up:
                self.accepted += accepted
                self.dropped += dropped
                self._in_hand -= settled

    def _look(self) -> None:
        """Ask how it is, if it is time. After a refused line only an accepted one shows that it is well."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + CHECK_SECONDS
        try:
            self._link.open()
            why = self._link.check()
        except Paused:
            return
        except BaseException as problem:  # noqa: BLE001 - as in _pass_on
            why = _reason(problem)
        if why is not None:
            self._ill(why)
        elif not self._refused:
            self._well()

    def _close(self) -> None:
        try:
            self._link.close()
        except BaseException as problem:  # noqa: BLE001 - as in _pass_on
            self._ill(_reason(problem))

    # ------------------------------------------------------------------ tell

    def _fail(self, why: str) -> None:
        if self.health.ill(why):
            self._untold = why

    def _ill(self, why: str) -> None:
        if self.health.ill(why):
            self._say("mirror.down", why)

    def _well(self) -> None:
        why = self.health.well()
        if why is not None:
            self._link.forgive()
            self._say("mirror.up", why)

    def _say(self, event: str, why: str) -> None:
        """Write a record. At the end nothing is said: that would be one more line to hand over."""
        if self._deadline is not None:
            return
        counted = {"accepted": self.accepted, "dropped": self.dropped}
        # The ledger tells of its own troubles.
        with contextlib.suppress(Exception):
            self._tell(event, {"mirror": self.mirror.name, "why": why, **counted})
