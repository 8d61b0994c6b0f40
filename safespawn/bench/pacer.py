"""A Python thread that looks at the clock all the time, and keeps the longest gap between two looks."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable


class Pacer:
    """The thread.

    As a context manager: it runs meanwhile. It writes to ``memory`` too, as a thread at work does.

    What stands between two looks is anything that keeps the thread from running: the interpreter's lock, a
    memory map that a fork has locked, a page that must be copied, and another process on its processor.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._stop = False
        self._looks = 0
        self._longest = [0]
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        before = time.monotonic_ns()
        while not self._stop:
            time.sleep(0)  # gives the interpreter away, as a thread does that waits for input
            self._memory[0] = 1
            now = time.monotonic_ns()
            longest = self._longest
            longest[0] = max(longest[0], now - before)
            self._looks += 1
            before = now

    def _await_look(self) -> None:
        until = self._looks + 2  # the first may have begun before now
        while self._looks < until:
            time.sleep(0)

    def longest_gap(self, task: Callable[[], object]) -> int:
        """Run the task; return the longest gap that lies in it, wholly or in part, in nanoseconds."""
        self._await_look()
        # A new place: what the thread is about to store of before goes to the old one.
        longest = self._longest = [0]
        task()
        self._await_look()
        return longest[0]

    def __enter__(self) -> Pacer:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        """Stop."""
        self._stop = True
        self._thread.join()
