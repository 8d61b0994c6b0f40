"""A child process of ours by its pidfd: waiting, signalling, and never losing one."""

from __future__ import annotations

import errno
import itertools
import os
import select
import signal
import threading
import time
from typing import Any

from . import _binding, _probe, _tree, audit
from ._spec import Exit


#: poll(2) counts milliseconds in an int; nobody waits for 20 days.
_FOREVER = 20 * 86400.0


class Child:
    """What is left of a spawn when the program runs: pidfd-only (T-09).

    The pid is for people; everything here goes by ``pidfd``, which is closed when the child
    is reaped. Any thread, and a signal handler at any moment, may call any method: reaping
    takes no lock (the kernel gives a child to one caller, C puts its end in ``_room`` before
    anybody can come between), and the lock around the descriptor is never waited for by a
    thread that has it.
    """

    def __init__(self, pid: int, pidfd: int, sid: str, started_ns: int, *, ours: bool = False) -> None:
        """Take over the descriptor. ``ours``: it ran no program, so its end is no record."""
        self.pid = pid
        self.sid = sid
        self.started_ns = started_ns
        self.ours = ours
        self.lost = False
        self.timeout_killed = False
        self._room = _binding.exit_room()
        self._elsewhere: Exit | None = None
        self._recorded = itertools.count()
        self._lock = threading.RLock()
        self.pidfd = pidfd

    @property
    def exit(self) -> Exit | None:
        """How it ended; None while that is not known."""
        return self._elsewhere or _binding.exit_of(self._room)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to reap."""
        return self._room.pid != 0 or self._elsewhere is not None or self.lost

    def wait(self, timeout: float | None) -> bool:
        """Wait for the end; False if ``timeout`` seconds went by. Raises ChildProcessError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.poll():
            left = None if deadline is None else deadline - time.monotonic()
            if not self._await_end(left):
                return self.poll()
        return True

    def _await_end(self, timeout: float | None) -> bool:
        # On a descriptor of our own: another thread may reap and close the child's.
        try:
            mine = os.dup(self.pidfd)
        except OSError:
            return True  # closed, so it is done
        try:
            # If it was closed before the dup, it was done before, and `mine` may be anything.
            return self.done or _readable(mine, timeout)
        finally:
            os.close(mine)

    def wait_unshared(self) -> bool:
        """Wait for the end of a child that no other thread can know of: one system call."""
        try:
            _binding.wait(self.pidfd, self._room, nohang=False)
        except InterruptedError:
            return False  # a signal: its Python handler runs before the next try
        except ChildProcessError:
            return self.wait(None)  # SIGCHLD is ignored, or somebody waits for any child
        self._finish("self")
        return True

    def poll(self) -> bool:
        """Reap if it has ended, and say so. Raises ChildProcessError if another reaped it."""
        if not self.done:
            self._reap()
        if self.lost:
            raise ChildProcessError(
                errno.ECHILD, f"process {self.pid} was reaped by somebody else, its status is unknown"
            )
        return self.done

    def _reap(self) -> None:
        pidfd = self.pidfd
        if pidfd < 0:
            return
        try:
            if _binding.wait(pidfd, self._room, nohang=True):
                self._finish("self")
        except ChildProcessError:
            self._reaped_elsewhere(pidfd)

    def _reaped_elsewhere(self, pidfd: int) -> None:
        """Not ours to reap: another thread was faster, it runs under a debugger, or it is lost."""
        for _ in range(1000):
            if self.done:
                return
            os.sched_yield()  # another thread may be between the kernel's answer and its store
        if not _readable(pidfd, 0):
            return
        self._elsewhere = _probe.exit_by_pidfd(pidfd, self.pid)
        self.lost = self._elsewhere is None
        self._finish("pidfd_info")

    def _finish(self, reaped_by: str) -> None:
        if next(self._recorded) == 0:
            self._record(reaped_by)
        with self._lock:
            pidfd, self.pidfd = self.pidfd, -1
            if pidfd >= 0:
                os.close(pidfd)

    def _record(self, reaped_by: str) -> None:
        if self.ours:
            return
        made = self.exit
        if made is None:
            audit.emit("exit.unknown", self.sid, lambda: {"pid": self.pid, "why": "reaped elsewhere"})
            return
        audit.emit("spawn.exit", self.sid, lambda: self._fields(made, reaped_by))

    def _fields(self, made: Exit, reaped_by: str) -> dict[str, Any]:
        ended: dict[str, Any] = (
            {"code": made.returncode}
            if made.returncode >= 0
            else {"signal": -made.returncode, "core": made.core}
        )
        return {
            "exit": {
                "pid": self.pid,
                **ended,
                "rusage": {
                    "utime": made.utime_us,
                    "stime": made.stime_us,
                    "maxrss": made.maxrss_kib,
                    "minflt": made.minflt,
                    "majflt": made.majflt,
                },
                "dur": time.monotonic_ns() - self.started_ns,
                "reaped_by": reaped_by,
                "timeout_killed": self.timeout_killed,
            }
        }

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens if the child has ended."""
        with self._lock:
            if self.pidfd < 0:
                return
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                pass

    def kill_tree(self) -> None:
        """Kill it and its descendants; nothing happens if it was reaped."""
        with self._lock:
            if self.pidfd >= 0:
                _tree.kill(self.pid, self.pidfd)


def _readable(pidfd: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if timeout is None or timeout > _FOREVER:
        return bool(poll.poll())
    return bool(poll.poll(max(0.0, timeout) * 1000))


#: Children whose handle was dropped before they ended, and those that SIGKILL could not
#: end yet. Looked at on every spawn, so that they become no zombies.
_abandoned: list[Child] = []


def abandon(child: Child) -> None:
    """Keep a child that nobody waits for until it can be reaped; twice is no error."""
    if child not in _abandoned:
        _abandoned.append(child)


def reap_abandoned() -> None:
    """Reap those of them that have ended."""
    if not _abandoned:
        return
    for child in list(_abandoned):
        try:
            ended = child.poll()
        except ChildProcessError:
            ended = True
        if ended:
            try:
                _abandoned.remove(child)
            except ValueError:
                pass  # another thread was faster


def _forget_in_fork() -> None:
    """Let a forked child drop its parent's children: it has no claim on them."""
    for child in _abandoned:
        if child.pidfd >= 0:
            os.close(child.pidfd)
    _abandoned.clear()


os.register_at_fork(after_in_child=_forget_in_fork)
