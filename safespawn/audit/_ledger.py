"""The append-only file: one write(2) per record, and the truth about it.

Mode ``require``: a record counts as kept when write(2) has taken all of it, which
survives the death of the process. ``durable``: when fdatasync(2) has returned as well,
which survives the loss of power. ``best_effort``: loss is counted and told, and stops
nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
import weakref
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from .. import _probe
from .._errors import AuditError
from . import _record
from ._ids import uuid7

Mode = Literal["best_effort", "require", "durable"]
MODES = ("best_effort", "require", "durable")

#: Daemons close or reuse low numbers by rote, and our lines must not land in their files.
LOW_FD = 512


def _lifted(fd: int) -> int:
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOW_FD)
    except OSError:  # the limit of open files is lower than that
        return fd
    os.close(fd)
    return high


def _opened(path: str) -> int:
    # O_NONBLOCK: a FIFO must be refused below, not waited for.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as problem:
        raise AuditError(problem.errno, f"cannot open the ledger: {problem.strerror}", path) from problem
    try:
        _suitable(fd, path)
        _is_ledger(fd, path)
        _end_line(fd)
    except AuditError:
        os.close(fd)
        raise
    except OSError as problem:
        os.close(fd)
        raise AuditError(problem.errno, f"cannot use the ledger: {problem.strerror}", path) from problem
    return _lifted(fd)


def _suitable(fd: int, path: str) -> None:
    seen = os.fstat(fd)
    if not stat.S_ISREG(seen.st_mode):
        raise AuditError(errno.EINVAL, "a ledger must be a regular file", path)
    if seen.st_uid not in (0, os.geteuid()) or seen.st_mode & 0o022:
        raise AuditError(
            errno.EPERM,
            f"others can write this ledger (uid {seen.st_uid}, mode {seen.st_mode & 0o7777:o})",
            path,
        )


def _is_ledger(fd: int, path: str) -> None:
    """A path from the environment must not make us write into just any file of ours."""
    start = os.pread(fd, len(_record.START), 0)
    if start and start != _record.START:
        raise AuditError(errno.EEXIST, "the file is not empty, and no ledger", path)


def _end_line(fd: int) -> None:
    """A process that died in a write leaves half a line: the next record starts a new one."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")


class Ledger:
    """An open ledger. Made by :func:`safespawn.audit.open`; also a context manager."""

    def __init__(self, path: str | os.PathLike[str], mode: Mode) -> None:
        """Open or create ``path``. Raises AuditError."""
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        self.path = os.fspath(path)
        self.mode = mode
        self.lost = 0
        self._lock = threading.RLock()
        self._fd = _opened(self.path)
        seen = os.fstat(self._fd)
        self._file = (seen.st_dev, seen.st_ino)
        self._pid = os.getpid()
        self._chain = uuid7()
        self._next = 0
        self._torn = False
        _open_ledgers.add(self)
        try:
            self._write("chain.open", None, {"who": _probe.who(None), "library": _version()})
            self._make_durable()
        except OSError as problem:
            self.close()
            raise self._error(problem) from problem

    def close(self) -> None:
        """Write the closing record and close the file; doing it twice is no error."""
        with self._lock:
            if self._fd < 0:
                return
            try:
                self._write("chain.close", None, {"lost": self.lost})
            except OSError:
                self.lost += 1  # there is nobody left to tell
            finally:
                if self._is_ours():
                    os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> Ledger:
        """Return the ledger."""
        return self

    def __exit__(self, *problem: object) -> None:
        """Close it."""
        self.close()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._fd < 0

    def append(self, event: str, sid: str | None, fields: Mapping[str, Any], *, gate: bool) -> bool:
        """Write one record; False if the ledger was closed, and nothing was done.

        ``gate``: what it announces has not happened yet, and must not when it cannot be
        written: AuditError, unless the mode is ``best_effort``. Without ``gate`` nothing is
        raised: the loss is counted, and told by the next record that can be written.
        """
        with self._lock:
            if self.closed:
                return False
            try:
                self._tell_loss()
                self._write(event, sid, fields)
                if gate and self.mode == "durable":
                    os.fdatasync(self._fd)
            except OSError as problem:
                self.lost += 1
                if gate and self.mode != "best_effort":
                    raise self._error(problem) from problem
            return True

    def refuse(self) -> None:
        """Raise AuditError because the ledger is closed, unless the mode is ``best_effort``."""
        if self.mode != "best_effort":
            raise self._error(OSError(errno.EBADF, "the process is ending, the ledger is closed"))

    def _error(self, problem: OSError) -> AuditError:
        told = AuditError(problem.errno, f"the record was not written: {problem.strerror}", self.path)
        told.guard = "intent-first"
        return told

    def _make_durable(self) -> None:
        """A new file is as durable as its directory entry: fsync(2)."""
        if self.mode != "durable":
            return
        os.fdatasync(self._fd)
        directory = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _tell_loss(self) -> None:
        if self.lost:
            lost, self.lost = self.lost, 0
            try:
                self._write("audit.degraded", None, {"lost": lost})
            except OSError:
                self.lost = lost
                raise

    def _is_ours(self) -> bool:
        try:
            seen = os.fstat(self._fd)
        except OSError:
            return False
        return (seen.st_dev, seen.st_ino) == self._file

    def _write(self, event: str, sid: str | None, fields: Mapping[str, Any]) -> None:
        if self._fd < 0:
            raise OSError(errno.EBADF, "the ledger is closed")
        if not self._is_ours():
            raise OSError(errno.EBADF, "somebody closed the ledger's descriptor")
        if os.getpid() != self._pid:
            self._start_chain()
        while not self._put(self._next, event, sid, fields):
            pass  # a signal handler has written records of its own meanwhile: count anew

    def _put(self, number: int, event: str, sid: str | None, fields: Mapping[str, Any]) -> bool:
        """Write the record if its number is still the next one.

        No handler comes between that look and the call of write (CPython 3.11 and later): they
        run after calls, on entry to functions and at jumps back only.
        """
        record = self._line(number, event, sid, fields)
        if self._torn:
            record = b"\n" + record  # ends the half of a record that is in the file
        write, fd = os.write, self._fd
        if self._next != number:
            return False
        self._next = number + 1
        try:
            written = write(fd, record)
        except OSError:
            if self._next == number + 1:
                self._next = number  # nothing is in the file, so the number is free
            raise
        self._torn = written != len(record)
        if self._torn:
            raise OSError(errno.ENOSPC, f"only {written} of {len(record)} bytes were taken")
        return True

    def _line(self, number: int, event: str, sid: str | None, fields: Mapping[str, Any]) -> bytes:
        return _record.line(
            {
                "v": _record.SCHEMA,
                "c": self._chain,
                "n": number,
                "ev": event,
                "sid": sid,
                "t": time.time_ns(),
                "mono": time.monotonic_ns(),
                "boot": _probe.boot_id(),
                "mode": self.mode,
                **fields,
            }
        )

    def _start_chain(self) -> None:
        """A forked child numbers its own records; the parent's chain goes on elsewhere."""
        parent = self._chain, self._pid, self._next
        self._pid, self._chain, self._next = os.getpid(), uuid7(), 0
        try:
            self._write(
                "chain.fork",
                None,
                {"who": _probe.who(None), "parent": parent[0], "parent_pid": parent[1]},
            )
        except OSError:
            self._chain, self._pid, self._next = parent  # the next record tries again
            raise

    def _after_fork(self) -> None:
        self._lock = threading.RLock()  # another thread may have held it


_open_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _reset_locks() -> None:
    for ledger in list(_open_ledgers):
        ledger._after_fork()  # noqa: SLF001


os.register_at_fork(after_in_child=_reset_locks)


def _version() -> str:
    try:
        return version("safespawn")
    except PackageNotFoundError:  # run from a source tree
        return "0+unknown"
