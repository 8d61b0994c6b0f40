"""A helper: a small process, started early, that makes children for a large one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from . import _allow, _binding, _checks, _helpers, _probe, _spawn
from ._errors import UnsafeSpawn
from ._process import Process
from ._spec import DEVNULL, Allow, HelperBase
from ._values import flag, integer
from .audit._core import process_number

__all__ = ["Helper"]

#: Descriptors in the helper: our socket, its policy, our pidfd.
_SOCKET, _POLICY, _PARENT = 3, 4, 5

#: Seconds between two starts of one that is lost again and again.
RESTART_PAUSE = 1.0

_EVERY_SIGNAL = range(1, signal.NSIG)
_SETTABLE = tuple(n for n in _EVERY_SIGNAL if n not in (signal.SIGKILL, signal.SIGSTOP))

#: What the helper's own policy allows nobody to write to: sealed as its plans are (_wire.h).
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def _descriptor(call: Callable[..., int], *arguments: object) -> int:
    """Return the descriptor that a call makes; its error says which call a sandbox refuses."""
    try:
        return call(*arguments)
    except OSError as problem:
        raise OSError(problem.errno, f"{problem.strerror}: {call.__name__} for a helper") from problem


def _sealed(data: bytes) -> int:
    """Return a sealed memfd of that content."""
    fd = _descriptor(os.memfd_create, "safespawn-policy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Helper(HelperBase):
    """Starts programs for this process without sharing its memory, whatever its size.

    As a context manager it is what strategy ``auto`` asks where no proof holds, and what ``helper`` and
    ``pool`` go by; ``helper=`` of a spawn names one. Its children are ours, like any other. ``allow`` is
    ``"any"``, paths of programs, or a mapping of ``programs`` (absolute paths; with a slash at the end: the
    files in that directory), ``users`` (names or numbers; our own, for children that stay what we are),
    ``variables`` (of the environment; a star at the end stands for any rest) and ``options``, of which
    ``fds`` is for every child that has not just descriptors 0, 1 and 2; where programs are named no
    ``root`` is allowed, because paths lead elsewhere there. It is fixed when the helper starts, and
    :meth:`shrink` can only take away. ``pool``: how many children are kept parked, at most 64.

    It ends with this process, and as soon as this process has dropped the ids or capabilities that the
    helper was started with, or has confined itself (chroot, namespaces, filters). With ``keep_after_drop`` it
    stays; then programs and users must be named. One that is lost is noticed by the next spawn and, with
    ``restart``, started anew, at most once a second; spawns of other threads go another way meanwhile, and
    are refused if they name the strategy.

    Raises TypeError, ValueError and KeyError for what cannot be meant; OSError, UnsafeSpawn and AuditError
    as :func:`safespawn.spawn` does when the helper cannot be started.
    """

    def __init__(
        self, *, allow: Allow = "any", pool: int = 0, keep_after_drop: bool = False, restart: bool = True
    ) -> None:
        """Check what is given; the helper is started by :meth:`start` or on entering."""
        self.keeps = flag("keep_after_drop", keep_after_drop)
        self.pool = integer("pool", pool, 0, _binding.POOL_MAX)
        self._restarts = flag("restart", restart)
        self._allowed = [_allow.allowed(allow, keeps=self.keeps)]
        self._process: Process | None = None
        self._end: _binding.HelperEnd | None = None
        self._owner = process_number()
        #: Held for moments only, and never while something is recorded: who hears of records may hold locks
        #: of his own, and start programs.
        self._lock = threading.RLock()
        #: Of who is about to start one: nobody else does meanwhile.
        self._starter: object | None = None
        self._started = 0.0
        self._told_lost = self._closed = False

    # ------------------------------------------------------------------ begin and end

    def start(self) -> Helper:
        """Start it, and have spawns ask it from now on. Raises RuntimeError if it was started."""
        ours = object()
        try:
            with self._lock:
                if self._process is not None or self._closed or self._starter is not None:
                    raise RuntimeError("this helper was started already")
                self._starter = ours
            self._owner = process_number()
            self._start()
        finally:
            if self._starter is ours:  # no call: a handler that raises in one would keep it for ever
                self._starter = None
        _helpers.enter(self)
        return self

    def __enter__(self) -> Helper:
        """Start it."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.close()

    def close(self) -> None:
        """End it, and all children that wait; those that run are not touched. Twice is no error."""
        _helpers.leave(self)
        if not self._is_ours():
            self._closed = True  # of our parent: what we had of it was closed when we were forked
            return
        with self._lock:
            seen = None if self._closed or self._process is None else self._seen_lost()
            self._closed = True  # now: one that is being started in its place is not wanted any more
        if self._process is None:
            return
        try:
            if seen is not None:
                self._tell_lost(*seen)  # since the last spawn
        finally:
            self.end.close()
            self._reap()

    @staticmethod
    def _is_lost(status: _binding.HelperStatus) -> bool:
        return bool(status.lost) or status.ended

    def _is_ours(self) -> bool:
        """Whether this process has started it. In a fork a thread that is not there may hold the lock."""
        return bool(self._owner == process_number())

    @property
    def end(self) -> _binding.HelperEnd:
        """Our end of the one that runs, or ran. Raises RuntimeError before there is any."""
        if self._end is None:
            raise RuntimeError("this helper was not started")
        return self._end

    def _start(self) -> None:
        """Start one. Spawns see it when it obeys all that the one before did."""
        self._started = time.monotonic()
        end = _binding.HelperEnd()
        try:
            self._begun(end)
        except BaseException:
            end.close()  # what it has parked is told of from its birth on
            raise

    def _begun(self, end: _binding.HelperEnd) -> None:
        with contextlib.ExitStack() as stack:
            ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(ours.close)
            stack.callback(its.close)
            end.hear(ours.fileno())
            policy = _sealed(end.policy(self._allowed[0], self.pool))
            stack.callback(os.close, policy)
            parent = _descriptor(os.pidfd_open, os.getpid())
            stack.callback(os.close, parent)
            process = _program({_SOCKET: its.fileno(), _POLICY: policy, _PARENT: parent})
            try:
                end.begin(ours.fileno(), process.pidfd, process.pid, keeps=self.keeps)
                self._show(end, process)
            except BaseException:
                process.kill()
                process.wait()
                raise

    def _show(self, end: _binding.HelperEnd, process: Process) -> None:
        """Let spawns see it, with every policy that there is by then."""
        with self._lock:
            # Of the list, no copy, and no call between its end and the showing: a handler may add to it.
            for allowed in itertools.islice(self._allowed, 1, None):
                self._shrink(end, allowed)
            if self._closed:  # last: the lock does not keep out a signal handler of this thread
                raise OSError(errno.ESHUTDOWN, "the helper was closed while it was started")
            self._end, self._process, self._told_lost = end, process, False

    def _reap(self) -> None:
        process = self._process
        if process is not None and process.report is not None:
            with contextlib.suppress(ChildProcessError):
                process.poll()

    # ------------------------------------------------------------------ for spawns

    def usable(self) -> bool:
        """Return whether spawns may ask it. A lost one is told of, and started anew if that is wanted."""
        if self._closed or self._process is None or not self._is_ours():
            return False
        if not self._is_lost(self.end.look()):
            return True
        ours = object()
        try:
            return self._revive(ours)
        finally:
            if self._starter is ours:  # no call, as in start
                self._starter = None

    def why_not(self) -> str:
        """Say why spawns may not ask it."""
        if self._closed or self._process is None:
            return "the helper is closed" if self._closed else "the helper was not started"
        if not self._is_ours():
            return "the helper belongs to the process that this one was forked from"
        return f"the helper is lost ({self._loss()})"

    def _loss(self) -> str:
        status = self.end.look()
        if self._closed:
            return "it was closed"
        if status.lost == errno.EPERM or (not status.lost and self._has_dropped()):
            return "it retired, because we have fewer rights than it was started with"
        return os.strerror(status.lost) if status.lost else "it has ended"

    def _revive(self, ours: object) -> bool:
        """Whether it is of use again. One thread sees to that; the others do not wait for it."""
        with self._lock:
            if self._closed or self._starter is not None:
                return False  # while we waited for the lock, or we are asked by who hears of its records
            seen = self._seen_lost()
            if seen is None:
                return True  # another thread has done it
            self._starter = ours
        self._tell_lost(*seen)
        status, _ = seen
        if not self._restarts or status.lost == errno.EPERM or self._has_dropped():
            return False
        if time.monotonic() - self._started < RESTART_PAUSE:
            return False
        self.end.close()
        try:
            self._start()
        except (OSError, UnsafeSpawn):
            return False  # and again in a second
        return True

    def _has_dropped(self) -> bool:
        """Whether we are not any more what we were when it was started: then the next would be less."""
        return bool(self._process is None or self._process.report.credentials != _probe.look().credentials)

    def _seen_lost(self) -> tuple[_binding.HelperStatus, str] | None:
        """Return what is known of one that is lost, and why it is; None of one that runs."""
        status = self.end.look()
        return (status, self._loss()) if self._is_lost(status) else None

    def _tell_lost(self, status: _binding.HelperStatus, why: str) -> None:
        with self._lock:
            if self._told_lost:
                return
            self._told_lost = True
        self._reap()
        _helpers.tell("helper.lost", {"pid": status.pid, "why": why, "asked": status.asked})

    # ------------------------------------------------------------------ the policy

    def shrink(self, allow: Mapping[str, Any] | Allow) -> None:
        """Allow from now on only what ``allow`` allows too. At most seven times.

        Children that were parked under more are ended, and others made. Raises what the constructor
        raises, RuntimeError if it does not run for this process or was shrunk seven times, and OSError:
        the helper is lost then, because it must not go on with more than was wanted. One that is started in
        its place obeys, also one that is being started meanwhile: that is no error.
        """
        allowed = _allow.allowed(allow, keeps=self.keeps)
        if self._closed or self._process is None or not self._is_ours():
            raise RuntimeError(f"cannot shrink: {self.why_not()}")
        with self._lock:
            if len(self._allowed) == _binding.POLICIES_MAX:
                raise RuntimeError(f"a helper obeys {_binding.POLICIES_MAX} policies at most")
            self._allowed.append(allowed)  # first: whatever happens now, the next one obeys it
            # One that is being started in the place of a lost one obeys it before it is shown.
            if self._starter is None or not self._is_lost(self.end.look()):
                self._shrink(self.end, allowed)
        _helpers.tell("helper.shrunk", {"pid": self.pid, "policies": len(self._allowed)})

    def _shrink(self, end: _binding.HelperEnd, allowed: _binding.Allowed) -> None:
        try:
            policy = _sealed(end.policy(allowed, self.pool))
        except BaseException:
            end.close()  # it has not heard of it
            raise
        try:
            end.shrink(policy)
        finally:
            os.close(policy)

    # ------------------------------------------------------------------ for people

    @property
    def pid(self) -> int | None:
        """The helper's pid, None before it was started."""
        return self._process.pid if self._process is not None else None

    def status(self) -> dict[str, Any]:
        """Return ``pid``, ``lost`` (None, or why), ``idle`` (parked children), ``asked`` (requests)."""
        if self._process is None or not self._is_ours():
            return {"pid": None, "lost": self.why_not(), "idle": 0, "asked": 0}
        seen = self.end.look()
        lost = self._loss() if seen.lost or seen.ended else None
        return {"pid": seen.pid, "lost": lost, "idle": seen.idle, "asked": seen.asked}

    def __repr__(self) -> str:
        """Show pid and pool."""
        return f"<Helper {self.pid} pool={self.pool}>"


def _program(fds: Mapping[int, int]) -> Process:
    """Start the program of the helper: pinned by its digest, with nothing of ours but what it needs."""
    words = ["safespawn-helper", str(_SOCKET), str(_POLICY), str(_PARENT)]
    request = _checks.request(
        words,
        {
            "executable": Path(_helpers.PATH),
            "digest": f"sha256:{_binding.helper_digest()}",
            "env": {},
            "stdin": DEVNULL,
            "stdout": DEVNULL,
            "stderr": DEVNULL,
            "fds": dict(fds),
            "sigmask": _EVERY_SIGNAL,
            "sigdefault": _SETTABLE,
            "helper": False,
        },
    )
    return _spawn.start(request)
