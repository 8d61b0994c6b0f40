"""How far a long file was read, told to whoever waits at a terminal."""

from __future__ import annotations

import time
from typing import TextIO

#: Seconds until it is worth telling, and between two tellings.
_FIRST, _AGAIN = 1.0, 0.2
_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def _size(count: float) -> str:
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


class Progress:
    """Writes one line to a terminal and takes it away again; to anything else it writes nothing."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream if stream is not None and stream.isatty() else None
        self.begun = time.monotonic()
        self.next = self.begun + _FIRST
        self.shown = False

    def __call__(self, done: int, total: int | None) -> None:
        """Tell how many bytes were read, of how many if that is known."""
        now = time.monotonic()
        if self.stream is None or now < self.next:
            return
        self.next = now + _AGAIN
        self.stream.write(f"\r{self.text(done, total, now - self.begun)}\x1b[K")
        self.stream.flush()
        self.shown = True

    @staticmethod
    def text(done: int, total: int | None, seconds: float) -> str:
        rate = done / seconds
        if not total or not done:  # nothing of it: a registry may take long before
            return f"{_size(done)} read, {_size(rate)}/s"
        # A ledger that grows has more than it had when we looked.
        left = max(0, total - done) / rate
        return f"{min(100, done * 100 // total)} % of {_size(total)}, {_size(rate)}/s, {left:.0f} s left"

    def clear(self) -> None:
        """Take the line away, before something else is written."""
        if self.shown and self.stream is not None:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self.shown = False
