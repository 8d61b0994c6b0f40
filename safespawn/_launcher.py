"""The launcher's program file: found beside us, judged, and held open. Looks; decides nothing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import threading
from typing import NamedTuple

from . import _binding
from ._descriptors import LOW_FD
from ._spec import Credentials

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launcher")
#: Whoever may write the compiled core runs code in this process anyway.
_CORE = os.stat(_binding.extension_path())

#: What the kernel or a security module says when it will not run the file.
REFUSALS = frozenset((errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOENT))

File = tuple[int, int, int, int, int]


class Held(NamedTuple):
    """The launcher as it was judged. ``file`` is device, inode, size, mtime and ctime.

    The number is for the child to check: anybody in this process may close a descriptor.
    """

    fd: int
    file: File
    mode: tuple[int, int, int]


class _State:
    """What is held; which file was refused, and whose capabilities did not outlive its exec."""

    lock = threading.RLock()
    held: Held | None = None
    refused: tuple[Held, str] | None = None
    unlevel: Credentials | None = None


def _look(fd: int) -> Held:
    now = os.fstat(fd)
    file = now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
    return Held(fd, file, (now.st_mode, now.st_uid, now.st_gid))


def _fault(held: Held) -> str | None:
    """Return what is wrong with the file, None if nothing is: launcher-intact (T-30)."""
    if not stat.S_ISREG(held.mode[0]):
        return "is no regular file"
    if (fault := _mode_fault(*held.mode)) is not None:
        return fault
    if _is_noexec(held.fd):
        return "lies on a file system that is mounted noexec"
    return None if _digest(held.fd) == _binding.launcher_digest() else "is not the one that was built with us"


def _mode_fault(mode: int, uid: int, gid: int) -> str | None:
    """Whoever may write to the core may write to the launcher, and nobody else."""
    loose, shown = mode & 0o022, f"(mode {mode & 0o7777:o})"
    if uid not in (0, _CORE.st_uid):
        return f"belongs to uid {uid}"
    if loose & ~_CORE.st_mode or (loose and gid != _CORE.st_gid):
        return f"can be written by others {shown}"
    if mode & 0o6000:
        return f"is set-id {shown}"
    return None if mode & 0o111 else f"is not executable {shown}"


def _is_noexec(fd: int) -> bool:
    return bool(os.fstatvfs(fd).f_flag & os.ST_NOEXEC)


def _digest(fd: int) -> str:
    digest, at = hashlib.sha256(), 0
    while chunk := os.pread(fd, 1 << 16, at):
        digest.update(chunk)
        at += len(chunk)
    return digest.hexdigest()


def _open() -> int:
    low = os.open(PATH, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, LOW_FD)
    except OSError:  # the limit of open files leaves no room up there
        return low
    os.close(low)
    return high


def _judge() -> str | None:
    """Open it and judge it; keep it only if nothing is wrong."""
    fd = _open()
    try:
        held = _look(fd)
        fault = _fault(held)
        # A signal handler that spawns may have come between, and judged it too.
        if fault is None and _State.held is None:
            _State.held, fd = held, -1
    finally:
        if fd >= 0:
            os.close(fd)
    return None if fault is None else f"{PATH} {fault}"


def _leads_to(held: Held) -> Held | None:
    try:
        return _look(held.fd)
    except OSError:  # somebody closed it
        return None


def _forget(held: Held) -> None:
    """Close it if it is ours still: the number may be somebody else's by now."""
    _State.held = None
    now = _leads_to(held)
    if now is not None and now.file[:2] == held.file[:2]:
        os.close(held.fd)


def hold() -> tuple[Held | None, str | None]:
    """Return the launcher, or None and why it cannot be used.

    Its digest is computed once, and anew when the file has been touched.
    """
    with _State.lock:
        held = _State.held
        if held is not None and _leads_to(held) != held:
            _forget(held)
        try:
            fault = _judge() if _State.held is None else None
        except OSError as problem:
            fault = f"{PATH}: {problem.strerror}"
        held = _State.held
        if held is None or fault is not None:
            return None, fault
        if _State.refused is not None and _State.refused[0] == held:
            return None, _State.refused[1]
        return held, None


def failed(stage: str, number: int, creds: Credentials) -> None:
    """Remember what would be in vain to try again: with this file, or with these capabilities."""
    held = _State.held
    if stage == "launch" and number in REFUSALS and held is not None and not _is_noexec(held.fd):
        _State.refused = held, f"{PATH}: {os.strerror(number)}"
    if stage == "level":
        _State.unlevel = creds


def hindrance(creds: Credentials) -> str | None:
    """Return why the exec of the launcher would change these credentials, None if it would not.

    An exec keeps the real and effective ids only, and of the capabilities of a user other than
    root none but the ambient ones (capabilities(7)).
    """
    if creds.suid != creds.euid or creds.sgid != creds.egid:
        return "our saved ids would not outlive its exec"
    if creds.euid != 0 and creds.permitted:
        return "our capabilities, as a user other than root, would not outlive its exec"
    return "our capabilities did not outlive its exec" if creds == _State.unlevel else None


def _after_fork() -> None:
    _State.lock = threading.RLock()  # another thread may have held it


os.register_at_fork(after_in_child=_after_fork)
