"""The launcher's program file: found beside us, judged, and held open. Looks; decides nothing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import threading

from . import _binding
from ._spec import Credentials

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launcher")
#: Our descriptor gets a number from here on: programs name low ones.
LOW_FD = 512

#: What made the kernel or a security module refuse to run it will do so again.
LASTING = frozenset((errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOENT, errno.EINVAL))


class _Held:
    """The one that was judged, by its descriptor and what it looked like then."""

    lock = threading.RLock()
    fd = -1
    seen: tuple[int, ...] = ()
    refused: str | None = None


def _looks(fd: int) -> tuple[int, ...]:
    now = os.fstat(fd)
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_mode, now.st_uid


def _fault(fd: int) -> str | None:
    """Return what is wrong with the file, None if nothing is: launcher-intact (T-30)."""
    seen = os.fstat(fd)
    if not stat.S_ISREG(seen.st_mode):
        return "is no regular file"
    # Whoever owns the extension runs code in this process anyway.
    if seen.st_uid not in (0, os.stat(_binding.extension_path()).st_uid):
        return f"belongs to uid {seen.st_uid}"
    if seen.st_mode & 0o022:
        return f"can be written by others (mode {seen.st_mode & 0o7777:o})"
    if os.fstatvfs(fd).f_flag & os.ST_NOEXEC:
        return "lies on a file system that is mounted noexec"
    if not seen.st_mode & 0o111:
        return f"is not executable (mode {seen.st_mode & 0o7777:o})"
    return None if _digest(fd) == _binding.launcher_digest() else "is not the one that was built with us"


def _digest(fd: int) -> str:
    digest, at = hashlib.sha256(), 0
    while chunk := os.pread(fd, 1 << 16, at):
        digest.update(chunk)
        at += len(chunk)
    return digest.hexdigest()


def _open() -> str | None:
    """Open it and judge it; keep it only if nothing is wrong."""
    low = os.open(PATH, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, LOW_FD)
    except OSError:  # the limit of open files leaves no room up there
        fd, low = low, -1
    finally:
        if low >= 0:
            os.close(low)
    fault = _fault(fd)
    if fault is not None:
        os.close(fd)
        return f"{PATH} {fault}"
    _Held.fd, _Held.seen = fd, _looks(fd)
    return None


def _still_held() -> bool:
    """Whether our descriptor leads to the file that was judged, unchanged."""
    try:
        return _Held.fd >= 0 and _looks(_Held.fd) == _Held.seen
    except OSError:  # somebody closed it
        return False


def _forget() -> None:
    """Close it if it is ours still: the number may be somebody else's by now."""
    fd, _Held.fd = _Held.fd, -1
    try:
        if fd >= 0 and _looks(fd)[:2] == _Held.seen[:2]:
            os.close(fd)
    except OSError:
        pass


def hold() -> tuple[int, str | None]:
    """Return the descriptor of the launcher, or -1 and why it cannot be used.

    Its digest is computed once, and anew when the file has been touched.
    """
    with _Held.lock:
        if _Held.refused is not None:
            return -1, _Held.refused
        if _still_held():
            return _Held.fd, None
        _forget()
        try:
            fault = _open()
        except OSError as problem:
            fault = f"{PATH}: {problem.strerror}"
        return (_Held.fd, None) if fault is None else (-1, fault)


def refuse(stage: str, number: int) -> None:
    """Remember that it could not be run, if it would be in vain to try again."""
    if stage == "launch" and number in LASTING:
        _Held.refused = f"{PATH}: {os.strerror(number)}"


def hindrance(creds: Credentials) -> str | None:
    """Return why the exec of the launcher would change these credentials, None if it would not.

    An exec keeps the real and effective ids only, and of the capabilities of a user other than
    root none but the ambient ones (capabilities(7)).
    """
    if creds.suid != creds.euid or creds.sgid != creds.egid:
        return "our saved ids would not outlive its exec"
    if creds.euid != 0 and creds.permitted:
        return "our capabilities, as a user other than root, would not outlive its exec"
    return None


def _after_fork() -> None:
    _Held.lock = threading.RLock()  # another thread may have held it


os.register_at_fork(after_in_child=_after_fork)
