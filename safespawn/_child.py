"""A child process of ours by its pidfd: waiting, signalling, and never losing one."""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
import time
from typing import Any

from . import _binding, _probe, _tree, audit
from ._spec import Exit


class Child:
    """What is left of a spawn when the program runs: pidfd-only (T-09).

    The pid is for people; everything here goes by ``pidfd``, which stays open until the
    child is reaped and nobody waits on it any more.
    """

    def __init__(self, pid: int, pidfd: int, sid: str, started_ns: int, *, ours: bool = False) -> None:
        """Take over the descriptor. ``ours``: it ran no program, so its end is no record."""
        self.pid = pid
        self.pidfd = pidfd
        self.sid = sid
        self.started_ns = started_ns
        self.ours = ours
        self.exit: Exit | None = None
        self.lost = False
        self.timeout_killed = False
        self._lock = threading.Lock()
        self._waiters = 0

    @property
    def done(self) -> bool:
        """Whether there is nothing left to reap."""
        return self.exit is not None or self.lost

    def wait(self, timeout: float | None) -> bool:
        """Wait for the end; False if ``timeout`` seconds went by. Raises ChildProcessError."""
        with self._lock:
            if self.done:
                return self._result()
            self._waiters += 1
            pidfd = self.pidfd
        try:
            ready = _readable(pidfd, timeout)
        finally:
            with self._lock:
                self._waiters -= 1
                self._close_if_idle()
        return ready and self.poll()

    def wait_unshared(self) -> bool:
        """Wait for the end of a child that no other thread can know of: one system call."""
        try:
            self.exit = _binding.wait(self.pidfd, nohang=False)
        except InterruptedError:
            return False  # a signal: its Python handler runs before the next try
        except ChildProcessError:
            return self.wait(None)  # SIGCHLD is ignored, or somebody waits for any child
        self._record("self")
        self._close_if_idle()
        return True

    def poll(self) -> bool:
        """Reap if it has ended, and say so. Raises ChildProcessError if another reaped it."""
        with self._lock:
            if not self.done:
                self._reap()
            return self._result()

    def _result(self) -> bool:
        if self.lost:
            raise ChildProcessError(
                errno.ECHILD, f"process {self.pid} was reaped by somebody else, its status is unknown"
            )
        return self.exit is not None

    def _reap(self) -> None:
        try:
            self.exit, reaped_by = _binding.wait(self.pidfd, nohang=True), "self"
        except ChildProcessError:
            if not _readable(self.pidfd, 0):
                return  # it runs still, as somebody else's child: a debugger's, say
            self.exit, reaped_by = _probe.exit_by_pidfd(self.pidfd, self.pid), "pidfd_info"
            self.lost = self.exit is None
        if self.done:
            self._record(reaped_by)
            self._close_if_idle()

    def _record(self, reaped_by: str) -> None:
        made = self.exit
        if self.ours:
            return
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

    def _close_if_idle(self) -> None:
        # A waiter may be about to use the number: it closes it when it is done.
        if self.done and not self._waiters and self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

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
        """Kill it and its descendants. Nobody reaps it meanwhile, so its pid stays its own."""
        with self._lock:
            if not self.done:
                _tree.kill(self.pid, self.pidfd)


def _readable(pidfd: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))


#: Children whose handle was dropped before they ended, and those that SIGKILL could not
#: end yet. Looked at on every spawn, so that they become no zombies.
_abandoned: list[Child] = []


def abandon(child: Child) -> None:
    """Keep a child that nobody waits for until it can be reaped."""
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
    """A forked child has no claim on its parent's children; their pidfds it may close."""
    for child in _abandoned:
        if child.pidfd >= 0:
            os.close(child.pidfd)
    _abandoned.clear()


os.register_at_fork(after_in_child=_forget_in_fork)
