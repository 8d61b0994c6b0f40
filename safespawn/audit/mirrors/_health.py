"""Whether a mirror is up, so that each change is told once and none too often. Looks at a clock only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: How long nothing may have failed before a mirror counts as up again, in seconds. Telling
#: that it is down is a record for all mirrors: this bounds how many of those there can be.
SETTLE_SECONDS = 5.0

#: A reason stands in records, of which each has a limit.
_REASON_MAX = 200


class Health:
    """Up at first. Of the two threads that use one, only one is told of a change."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.down: str | None = None
        self._clock = clock
        self._well_since: float | None = None
        self._lock = threading.Lock()

    def ill(self, why: str) -> bool:
        """Something failed. Returns True if it was up until now."""
        with self._lock:
            was_up = self.down is None
            self.down = why[:_REASON_MAX]
            self._well_since = None
            return was_up

    def well(self) -> str | None:
        """Something worked. Returns what it was down for, if with this it is up again."""
        with self._lock:
            if self.down is None:
                return None
            now = self._clock()
            if self._well_since is None:
                self._well_since = now
            if now - self._well_since < SETTLE_SECONDS:
                return None
            why, self.down, self._well_since = self.down, None, None
            return why
