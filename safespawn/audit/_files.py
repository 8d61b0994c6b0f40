"""Where a ledger may lie, and how its files are opened: ledger-ours (T-33)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from .._errors import AuditError
from . import _core, _record

#: Daemons close or reuse low numbers by rote, and our lines must not land in their files.
LOW_FD = 512

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


def judge_directory(path: str) -> None:
    """Refuse a place where others could put another file in the ledger's place. Raises AuditError.

    Every directory on the way to ``path``, links included, must belong to root or to us, and only
    those two may write there; a sticky directory such as /tmp is fine.
    """
    todo = _parts(os.path.join(os.getcwd(), os.path.dirname(path)))
    here, shown, links = os.open("/", os.O_PATH | os.O_CLOEXEC), "/", 0
    try:
        _judge(os.fstat(here), "/", path)
        while todo:
            name = todo.pop()
            seen = os.stat(name, dir_fd=here, follow_symlinks=False)
            at = os.path.join(shown, name)
            _judge(seen, at, path)
            if stat.S_ISLNK(seen.st_mode):
                links += 1
                if links > _LINKS_MAX:
                    raise AuditError(errno.ELOOP, "too many links on the way to the ledger", path)
                to = os.readlink(name, dir_fd=here)
                todo += _parts(to)
                name, at = ("/", "/") if to.startswith("/") else (".", shown)
            next_one = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here, shown = next_one, at
    except AuditError:
        raise
    except OSError as problem:
        raise AuditError(problem.errno, f"cannot open the ledger: {problem.strerror}", path) from problem
    finally:
        os.close(here)


def _parts(path: str) -> list[str]:
    """Return the names of a path, the last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _judge(seen: os.stat_result, at: str, path: str) -> None:
    kind, mode = stat.S_IFMT(seen.st_mode), seen.st_mode
    if seen.st_uid not in (0, os.geteuid()):
        raise AuditError(
            errno.EPERM, f"the ledger's path leads through {at!r}, which belongs to uid {seen.st_uid}", path
        )
    if kind == stat.S_IFDIR and mode & 0o022 and not mode & stat.S_ISVTX:
        raise AuditError(
            errno.EPERM,
            f"the ledger's path leads through {at!r}, which others can write (mode {mode & 0o7777:o})",
            path,
        )


def open_segment(path: str, *, strict: bool) -> int:
    """Open or create the file that is to be written; its descriptor is high where the limit allows.

    ``strict``: no file system of the network. Raises AuditError.
    """
    judge_directory(path)
    fd = _opened(path, os.O_APPEND)
    try:
        if strict and (kind := NETWORK.get(_core.file_system(fd))):
            raise AuditError(errno.EMEDIUMTYPE, f"a ledger cannot be kept on {kind}, the network", path)
        _is_ledger(fd, path)
        _end_line(fd)
    except AuditError:
        os.close(fd)
        raise
    except OSError as problem:
        os.close(fd)
        raise AuditError(problem.errno, f"cannot use the ledger: {problem.strerror}", path) from problem
    return lifted(fd)


def open_beside(path: str) -> int:
    """Open or create a file that belongs to a ledger, by the same rules. Raises AuditError."""
    return lifted(_opened(path, 0))


def lifted(fd: int) -> int:
    """Return the descriptor under a high number."""
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOW_FD)
    except OSError:  # the limit of open files is lower than that
        return fd
    os.close(fd)
    return high


def _opened(path: str, more: int) -> int:
    # O_NONBLOCK: a FIFO must be refused below, not waited for.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK | more
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as problem:
        raise AuditError(problem.errno, f"cannot open the ledger: {problem.strerror}", path) from problem
    try:
        _suitable(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


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


# ------------------------------------------------------------------ segments


def numbers(path: str) -> Iterator[int]:
    """Yield the numbers of the older segments of a ledger, in no order."""
    head = os.path.basename(path) + "."
    for name in os.listdir(os.path.dirname(path) or "."):
        tail = name[len(head) :]
        if name.startswith(head) and tail.isdecimal() and tail == str(int(tail)):
            yield int(tail)


def identity(path: str) -> tuple[int, int]:
    """Return device and inode of what a path leads to. Raises OSError."""
    seen = os.stat(path)
    return seen.st_dev, seen.st_ino


def is_at(path: str, fd: int) -> bool:
    """Return whether ``path`` is still the file of that descriptor."""
    try:
        there, ours = os.stat(path, follow_symlinks=False), os.fstat(fd)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


#: ioctl_iflags(2): may only be appended to. Not even root cuts, renames or deletes such a file.
_GETFLAGS, _SETFLAGS, _APPEND_ONLY = 0x80086601, 0x40086602, 0x20


def set_append_only(fd: int, *, on: bool) -> None:
    """Set or clear the append-only flag of a file. Raises OSError: it takes CAP_LINUX_IMMUTABLE."""
    flags = int.from_bytes(fcntl.ioctl(fd, _GETFLAGS, bytes(8)), "little")
    wanted = flags | _APPEND_ONLY if on else flags & ~_APPEND_ONLY
    if wanted != flags:
        fcntl.ioctl(fd, _SETFLAGS, wanted.to_bytes(8, "little"))
