"""A child process of ours by its pidfd: waiting, signalling, and never losing one."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from . import _binding, _cgroup, _probe, _tree, audit
from ._spec import Exit
from ._surely import keep
from .audit._core import Teller, ended, new_kept, process_number

#: Seconds. poll(2) counts milliseconds in an int, so longer waits are made of several.
_FOREVER = 20 * 86400.0

#: What waitid(2) answers for a pidfd that is closed, and for -1.
NO_DESCRIPTOR = (-errno.EBADF, -errno.EINVAL)

#: Seconds between looks at a child that has ended and is its tracer's to reap first: nothing tells us when
#: that is done (ptrace(2); its pidfd is readable all the time).
_TRACER_LOOK = 0.01


class Child:
    """What is left of a spawn when the program runs: pidfd-only (T-09).

    The pid is for people; everything here goes by ``pidfd``, which is closed when the child
    is reaped. Any thread, and a signal handler at any moment, may call any method: the lock
    keeps the descriptor from being closed by another thread between a look at its number and
    its use, its owner can take it again, and C puts the end of a child in ``_room`` before any
    handler can come between.
    """

    #: The cgroup that it was put into.
    group: _cgroup.Group | None = None
    #: Whether SIGKILL could not end it in time, so that it is waited for no longer.
    given_up = False

    def __init__(self, sid: str, *, unrecorded: bool = False) -> None:
        """Make one before the spawn. ``unrecorded``: it runs no program, so its end is no record."""
        self.pid = 0
        self.sid = sid
        self.started_ns = time.monotonic_ns()
        self.unrecorded = unrecorded
        self.lost = False
        #: Which chain has put room by for the record of its end; 0 for none.
        self.booked = 0
        self.timeout_killed = False
        self._room, self._room_end = _binding.exit_room()
        self._elsewhere: Exit | None = None
        self._recording, self._reaped_by = False, "self"
        self._ending = new_kept()
        self._lock = threading.RLock()
        self._owner = process_number()

    def _only_ours(self) -> None:
        """Refuse in a forked process: the child is its sibling there, and the lock its parent's."""
        if not self.is_ours:
            raise ChildProcessError(errno.ECHILD, f"process {self.pid} is a child of our parent, not ours")

    @property
    def is_ours(self) -> bool:
        """Whether it is a child of this process."""
        return bool(process_number() == self._owner)

    def adopt(self, slot: _binding.Slot) -> bool:
        """Take over what came of a spawn; doing it twice is no error. False if it was nothing."""
        slot.give_to(self._room)
        self.pid = slot.pid
        if self.pidfd >= 0:
            _rooms[id(self._room)] = self._room_end
        return self.pidfd >= 0

    @property
    def pidfd(self) -> int:
        """The descriptor; -1 once it is closed."""
        return int(self._room.pidfd)

    @property
    def exit(self) -> Exit | None:
        """How it ended; None while that is not known."""
        return self._elsewhere or _binding.exit_of(self._room)

    @property
    def returncode(self) -> int | None:
        """Its exit code, -N for signal N, None while that is not known."""
        if self._elsewhere is not None:
            return self._elsewhere.returncode
        return _binding.returncode_of(self._room)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to reap."""
        return bool(self._room.pid)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to reap, nor to record."""
        return self.done and (self._recording or self.unrecorded)

    def wait(self, timeout: float | None) -> bool:
        """Wait for the end; False if ``timeout`` seconds went by. Raises ChildProcessError."""
        if timeout is not None and math.isnan(timeout):
            raise ValueError(f"timeout must be a number of seconds, not {timeout!r}")
        deadline = None if timeout is None else time.monotonic() + timeout
        if timeout is None and not self.done:
            self._only_ours()
            _binding.await_end(self._room, -1)  # it runs still, most likely
        while not self.poll():
            left = _FOREVER if deadline is None else max(0.0, deadline - time.monotonic())
            # An exception of a handler leaves from here; nothing is held that could be lost.
            answer = _binding.await_end(self._room, int(min(left, _FOREVER) * 1000) + (left > 0))
            with self._lock:
                pass  # another thread may be reaping it: let that finish
            if deadline is not None and time.monotonic() >= deadline:
                return self.poll()
            if answer == 1 and not self.poll():
                time.sleep(_TRACER_LOOK)
        return True

    def wait_unshared(self) -> bool:
        """Wait for the end of a child that no other thread can know of: one system call."""
        answer = _binding.wait(self._room, _binding.WAIT_END)
        if answer == 0:
            self._finish()
            return True
        if answer == -errno.EINTR:
            return False  # a signal: its Python handler runs before the next try
        return self.wait(None)  # SIGCHLD is ignored, or somebody waits for any child

    def poll(self) -> bool:
        """Reap if it has ended, and say so. Raises ChildProcessError if another reaped it."""
        self._only_ours()
        if not self.done:
            self._unless_busy(self._reap)
        elif not self._recording:
            self._finish()  # a handler that raised has kept the record from being written
        if self.lost:
            raise ChildProcessError(
                errno.ECHILD, f"process {self.pid} was reaped by somebody else, its status is unknown"
            )
        return self.done

    def _unless_busy(self, do: Callable[[], None]) -> None:
        """Do something under the lock, if nobody has it."""
        held: list[bool] = []
        try:
            # Whoever has the lock is reaping, or about to close the descriptor: no need to wait.
            keep(held, self._lock.acquire, False)
            if True in held:
                do()
        finally:
            if True in held:
                self._lock.release()

    def _reap(self) -> None:
        answer = _binding.wait(self._room, _binding.WAIT_NOHANG)
        if answer == 0:
            self._finish()
        elif answer == -errno.ECHILD:
            self._reaped_elsewhere()
        elif answer in NO_DESCRIPTOR and not self.done:
            self.lose("somebody closed its pidfd")

    def _reaped_elsewhere(self) -> None:
        """Not ours to reap: it runs under a debugger, or somebody has taken it."""
        if self.done or _binding.await_end(self._room, 0) != 1:
            return
        self._elsewhere = _probe.exit_by_pidfd(self.pidfd, self.pid)
        self.lost = self._elsewhere is None
        self._reaped_by = "reaped elsewhere" if self.lost else "pidfd_info"
        self._room.pid = -1
        self._finish()

    def _finish(self) -> None:
        with self._lock:
            self._close()
        if self._recording:
            return
        try:
            self._recording = True  # inside: no step between this and what takes it back
            self._record(self._reaped_by)
        except BaseException:
            self._recording = bool(self._ending.told)
            raise

    def lose(self, why: str) -> None:
        """Record that nobody will know how it ended: there is no descriptor of it, or not any more."""
        self._reaped_by = why
        # Not closed: the number may be another's by now.
        self.lost, self._room.pid, self._room.pidfd = True, -1, -1
        self._finish()

    def drop(self) -> bool:
        """Let others reap and record it, because its handle is gone; whether it may be running."""
        if self.is_ours and not self.over:
            abandon(self)
        return self.is_ours and not self.done and not self.given_up

    def forget(self) -> None:
        """Close the descriptor and look no more: it is not, or no longer, our child."""
        self.lost, self._room.pid = True, -1
        self._close()

    def _close(self) -> None:
        _binding.close_pidfd(self._room)
        _rooms.pop(id(self._room), None)
        if self.group is not None:
            self.group.close()

    def _record(self, reaped_by: str) -> None:
        if self.unrecorded:
            return
        self._ending.settling = self.booked
        event, make, native = "spawn.exit", partial(self._fields, reaped_by), None
        if self.lost:
            event, make = "exit.unknown", partial(dict, pid=self.pid, why=reaped_by)
        elif reaped_by == "self":
            native = self._tell
        audit.emit(event, self.sid, make, settles=1, native=native, kept=self._ending)

    def _tell(self, teller: Teller, kept: Any) -> int:
        took = time.monotonic_ns() - self.started_ns
        sid = self.sid.encode("ascii")
        error: int = ended(teller.raw, sid, self._room, took, self.timeout_killed, kept)
        return error

    def _fields(self, reaped_by: str) -> dict[str, Any]:
        made = self.exit
        if made is None:
            return {"pid": self.pid}
        ended: dict[str, Any] = (
            {"code": made.returncode}
            if made.returncode >= 0
            else {"signal": -made.returncode, "core": made.core}
        )
        return {
            "exit": {
                "pid": self.pid,
                **ended,
                **({"rusage": _usage(made)} if reaped_by in ("self", "os.wait") else {}),
                "dur": time.monotonic_ns() - self.started_ns,
                "reaped_by": reaped_by,
                "timeout_killed": self.timeout_killed,
            }
        }

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens if the child has ended."""
        self._only_ours()
        with self._lock:
            answer = _binding.send(self._room, number)
        if answer not in (0, -errno.ESRCH, -errno.EBADF):
            raise OSError(-answer, f"{os.strerror(-answer)}: signal {number} to process {self.pid}")

    def kill_tree(self) -> None:
        """Kill it and its tree; nothing happens if it was reaped.

        Raises OSError if not all of it could be had, when the rest is killed.
        """
        self._only_ours()
        with self._lock:
            if self.pidfd >= 0:
                _tree.kill(self.pid, self.pidfd, self.group)

    def kill_and_wait(self, grace: float) -> bool:
        """Kill its tree and wait ``grace`` seconds at most; False if it is still not over, and given up.

        Raises what :meth:`kill_tree` and :meth:`wait` raise, when that is done.
        """
        try:
            self.kill_tree()
        finally:
            self.given_up = not self.wait(grace)
            if self.given_up:
                abandon(self)
        return not self.given_up


#: What closes the descriptors of children that are not reaped. A handle in a cycle of garbage gives its child
#: to those who look later, and in the same moment the collector would end all that is in the cycle, the
#: descriptor too.
_rooms: dict[int, Any] = {}

#: Children whose handle was dropped before they ended, and those that SIGKILL could not
#: end yet. Looked at on every spawn, so that they become no zombies.
_abandoned: list[Child] = []


def _usage(made: Exit) -> dict[str, int]:
    """Return what the kernel tells of who is reaped, and of nobody else."""
    return {
        "utime": made.utime_us,
        "stime": made.stime_us,
        "maxrss": made.maxrss_kib,
        "minflt": made.minflt,
        "majflt": made.majflt,
    }


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
        child.forget()
    _abandoned.clear()
    _rooms.clear()
    _cgroup.forget_all()


os.register_at_fork(after_in_child=_forget_in_fork)
