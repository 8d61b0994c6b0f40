"""Where a ledger may lie, and how its files are opened: ledger-ours (T-33)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from .._descriptors import LOW_FD
from .._errors import AuditError
from . import _core, _record, _segments
from ._core import File

#: File systems of the network (linux/magic.h, statfs(2)): there two hosts that append to one
#: file overwrite each other's lines, and a hung server hangs every spawn.
NETWORK = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB2",
    0xFF534D42: "CIFS",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x01021997: "9P",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
}

_LINKS_MAX = 40  # as path_resolution(7)


def place_of(path: str) -> str:
    """Return the absolute path of what ``path`` means to the kernel. Raises AuditError.

    Not abspath alone: behind a link, `..` goes up from where that leads to.
    """
    try:
        whole = os.path.join(os.getcwd(), path) if not os.path.isabs(path) else path
    except OSError as problem:  # the directory that we are in is gone
        raise AuditError(problem.errno, f"cannot open the ledger: {problem.strerror}", path) from problem
    if ".." not in whole.split("/"):
        return os.path.abspath(whole)
    judge_directory(whole)  # here, because the links on the way are not in the answer
    head, name = os.path.split(whole)
    return os.path.join(os.path.realpath(head), name)


def judge_directory(path: str, what: str = "the ledger") -> None:
    """Refuse a place where others could put another file in the place of ``what``. Raises AuditError.

    Every directory on the way to ``path``, links included, must belong to root or to us, and only
    those two may write there; a sticky directory such as /tmp is fine.
    """
    here, shown, links = File(), "/", 0
    try:
        # Not abspath: a directory of ours may be gone, or out of reach, where the path is absolute.
        todo = _parts(os.path.dirname(path if os.path.isabs(path) else os.path.join(os.getcwd(), path)))
        here.open("/", os.O_PATH)
        _judge(os.fstat(here.fd), "/", path, what)
        while todo:
            name = todo.pop()
            seen = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
            at = os.path.join(shown, name)
            _judge(seen, at, path, what)
            if stat.S_ISLNK(seen.st_mode):
                links += 1
                if links > _LINKS_MAX:
                    raise AuditError(errno.ELOOP, f"too many links on the way to {what}", path)
                to = os.readlink(name, dir_fd=here.fd)
                todo += _parts(to)
                name, at = ("/", "/") if to.startswith("/") else (".", shown)
            here.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, beside=here)
            shown = at
    except AuditError:
        raise
    except OSError as problem:
        raise AuditError(problem.errno, f"cannot open {what}: {problem.strerror}", path) from problem
    finally:
        here.close()


def _parts(path: str) -> list[str]:
    """Return the names of a path, the last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _judge(seen: os.stat_result, at: str, path: str, what: str) -> None:
    kind, mode = stat.S_IFMT(seen.st_mode), seen.st_mode
    if seen.st_uid not in (0, os.geteuid()):
        raise AuditError(
            errno.EPERM, f"{what}'s path leads through {at!r}, which belongs to uid {seen.st_uid}", path
        )
    if kind == stat.S_IFDIR and mode & 0o022 and not mode & stat.S_ISVTX:
        raise AuditError(
            errno.EPERM,
            f"{what}'s path leads through {at!r}, which others can write (mode {mode & 0o7777:o})",
            path,
        )


def open_segment(path: str, *, strict: bool) -> File:
    """Open or create the file that is to be written; its descriptor is high where the limit allows.

    ``strict``: no file system of the network. Raises AuditError.
    """
    judge_directory(path)
    file = _opened(path, os.O_APPEND)
    with _closed_if_refused(file, path):
        if strict and (kind := NETWORK.get(_core.file_system(file.fd))):
            raise AuditError(errno.EMEDIUMTYPE, f"a ledger cannot be kept on {kind}, the network", path)
        _is_ledger(file.fd, path)
    file.lift(LOW_FD)
    return file


def open_beside(path: str, more: int = 0) -> File:
    """Open or create a file that belongs to a ledger, by the same rules. Raises AuditError."""
    file = _opened(path, more)
    file.lift(LOW_FD)
    return file


def _opened(path: str, more: int) -> File:
    # O_NONBLOCK: a FIFO must be refused below, not waited for.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK | more
    file = File()
    with _closed_if_refused(file, path):
        file.open(path, flags)
        _suitable(file.fd, path)
    return file


@contextlib.contextmanager
def _closed_if_refused(file: File, path: str) -> Iterator[None]:
    """Close it before an exception leaves, which may be kept for long. Raises AuditError for any OSError."""
    try:
        yield
    except BaseException as problem:
        file.close()
        if isinstance(problem, OSError) and not isinstance(problem, AuditError):
            raise AuditError(problem.errno, f"cannot open the ledger: {problem.strerror}", path) from problem
        raise


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
    if seen.st_size == 0 and seen.st_mode & 0o600 != 0o600:  # made under a umask that takes even ours
        os.fchmod(fd, seen.st_mode & 0o7777 | 0o600)


def _is_ledger(fd: int, path: str) -> None:
    """A path from the environment must not make us write into just any file of ours.

    Before the first record there may be beginnings of it, where a process was killed or the disk was full.
    """
    for line in os.pread(fd, 100, 0).removesuffix(b"\n").split(b"\n"):
        if line.startswith(_record.START):
            return
        if not _record.START.startswith(line):
            raise AuditError(errno.EEXIST, "the file is not empty, and no ledger", path)


def flush_directory(path: str) -> None:
    """Wait until the disk has the entries of a directory: fsync(2). Raises OSError."""
    with File().open(path, os.O_RDONLY | os.O_DIRECTORY) as directory:
        directory.sync()


# ------------------------------------------------------------------ segments


def numbers(path: str) -> list[int]:
    """Return the numbers of the older segments that are ours, the oldest first. Raises OSError."""
    # Nobody has a thousand million segments; whoever makes such a name wants no other to fit.
    return [number for number in _segments.numbers(path) if number < 10**9]


#: ioctl_iflags(2): may only be appended to. Not even root cuts, renames or deletes such a file.
_GETFLAGS, _SETFLAGS, _APPEND_ONLY = 0x80086601, 0x40086602, 0x20


def set_append_only(fd: int, *, on: bool) -> None:
    """Set or clear the append-only flag of a file. Raises OSError: it takes CAP_LINUX_IMMUTABLE."""
    flags = int.from_bytes(fcntl.ioctl(fd, _GETFLAGS, bytes(8)), "little")
    wanted = flags | _APPEND_ONLY if on else flags & ~_APPEND_ONLY
    if wanted != flags:
        fcntl.ioctl(fd, _SETFLAGS, wanted.to_bytes(8, "little"))
