"""A mirror and its connection: opens it when it is time, and sends over it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from ._mirror import Mirror

#: Pauses between tries to open a mirror, in seconds: doubled from the first to the last.
PAUSE_FIRST, PAUSE_LAST = 0.1, 30.0

_T = TypeVar("_T")


class Paused(OSError):
    """The mirror is closed, and it is not yet time to open it again."""


class Link:
    """Used by one thread; ``busy_since`` is for another one that looks whether it hangs."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self.is_open = False
        #: When the mirror was called, on the monotonic clock, or None.
        self.busy_since: float | None = None
        self._pause = PAUSE_FIRST
        self._again = 0.0

    def open(self) -> None:
        """Open it if it is not open. Raises Paused, or what the mirror raises."""
        if self.is_open:
            return
        if time.monotonic() < self._again:
            raise Paused(errno.EAGAIN, "waits to be opened again")
        try:
            self._call(self.mirror.open)
        except BaseException:
            self._wait_longer()
            raise
        self.is_open = True

    def send(self, line: bytes, *, was_well: bool) -> None:
        """Send one line. Raises Paused, or what the mirror raises.

        Over a connection that broke while all was well, it is opened at once and the line
        sent once more: a receiver was restarted. When that breaks too, it waits.
        """
        self.open()
        try:
            self._call(lambda: self.mirror.send(line))
        except TimeoutError:
            self._shut()
            raise
        except ConnectionError:
            if not was_well:
                self._shut()
                raise
            self.close()
            self.open()
            self.send(line, was_well=False)

    def check(self) -> str | None:
        """Return what the mirror says of itself."""
        return self._call(self.mirror.check)

    def close(self) -> None:
        """Close it. Raises what the mirror raises."""
        self.is_open = False
        self._call(self.mirror.close)

    def forgive(self) -> None:
        """All is well again: the next pause is a short one."""
        self._pause = PAUSE_FIRST

    def _shut(self) -> None:
        self.close()
        self._wait_longer()

    def _wait_longer(self) -> None:
        self._again = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, PAUSE_LAST)

    def _call(self, what: Callable[[], _T]) -> _T:
        self.busy_since = time.monotonic()
        try:
            return what()
        finally:
            self.busy_since = None
