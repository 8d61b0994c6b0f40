"""Children that other code reaps, as subprocess and multiprocessing do their own: seen to their records.

Whoever called the seam got a pid and waits for it with functions of ``os``; those tell us (``takeover``).
What C code reaps is noticed on the next spawn, and the kernel may still say how it ended (Linux 6.15).
"""

from __future__ import annotations

import atexit
import errno
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from . import _binding, _child
from ._secret import Secret
from ._spec import Exit, SpawnReport
from ._streams import Streams

#: So many are looked at on each start.
_AT_ONCE = 8

#: Whose turn it is; numbers of children that are over fall out when it comes.
_turn: deque[int] = deque()

#: By pid. One that was reaped is no longer here when the number is another process's.
_watched: dict[int, Watched] = {}


class Watched(_child.Child):
    """A child that is not ours to reap."""

    def look(self) -> bool:
        """Record its end if it has ended; whether it has. It is left to be reaped by whom it belongs to."""
        self._unless_busy(self._look)
        return self.over

    def _look(self) -> None:
        if self.done:
            if not self.over:
                self._finish()  # a handler that raised has kept the record from being written
            return
        answer = _binding.wait(self._room, _binding.WAIT_LOOK)
        if answer == 0:
            self._reaped_by = "os.wait"
            self._finish()
        elif answer == -errno.ECHILD:
            self._reaped_elsewhere()
        elif answer in _child.NO_DESCRIPTOR:
            self.lose("somebody closed its pidfd")

    def reaped(self, how: Exit, by: str) -> None:
        """Record its end, which one of the functions of ``os`` has told."""
        with self._lock:
            if not self.done:
                self._elsewhere, self._reaped_by = how, by
                self._room.pid = -1
            if not self.over:
                self._finish()


def start(begin: Callable[[Callable[..., int]], int]) -> int:
    """Have a child watched that ``begin`` starts, for the handle it is given; returns the pid.

    If it raises behind the start, nobody learns the pid: the child is ours to reap then.
    """
    taken: list[Watched] = []
    try:
        pid = begin(partial(_take, taken))
        for child in taken:  # its start is recorded: not before that may others record its end
            before = _watched.get(pid)
            if before is not None:
                before.look()  # it was reaped, or its number would not have come again
            _watched[pid] = child
            _turn.append(pid)
    except BaseException:
        for child in taken:
            _watched.pop(child.pid, None)
            _child.abandon(child)
        raise
    return pid


def _take(
    taken: list[Watched],
    child: _child.Child,
    argv: tuple[bytes | Secret[Any], ...],
    make_report: Callable[[], SpawnReport],
    streams: Streams,
) -> int:
    """Watch a child from now on; returns its pid. A handle as ``_spawn.start_as`` wants it."""
    del argv, make_report, streams
    assert isinstance(child, Watched)  # noqa: S101 - its maker was told so
    taken.append(child)
    return child.pid


def any_left(pid: int) -> bool:
    """Look whether a wait for ``pid`` can tell how a child ends; one that has ended is recorded now."""
    if pid <= 0:
        look()  # a number that comes again later must not be taken for one of these
        return bool(_watched)
    child = _watched.get(pid)
    if child is None:
        return False
    if child.look():
        _watched.pop(pid, None)
        return False
    return True


def reaped(how: Exit, by: str) -> None:
    """Take note that somebody has reaped a process: one of ours, or another."""
    child = _watched.get(how.pid)
    if child is not None:
        child.reaped(how, by)
        _watched.pop(how.pid, None)  # not before: a handler may raise in between


def look_at_some() -> None:
    """Look at a few, in turn, for those that were reaped unseen: there may be many."""
    for _ in range(min(_AT_ONCE, len(_turn))):
        try:
            pid = _turn.popleft()
        except IndexError:  # other threads took the last
            return
        child = _watched.get(pid)
        if child is None:
            continue
        if child.look():
            _watched.pop(pid, None)
        else:
            _turn.append(pid)


def look() -> None:
    """Look at all, for those that were reaped unseen."""
    for pid, child in list(_watched.items()):
        if child.look():
            _watched.pop(pid, None)


atexit.register(look)  # before the ledger is closed: that was registered earlier


def _forget_in_fork() -> None:
    """Let a forked child drop its parent's children."""
    for child in _watched.values():
        child.forget()
    _watched.clear()
    _turn.clear()


os.register_at_fork(after_in_child=_forget_in_fork)
