"""Reads a file that nobody but root and we can have written."""

from __future__ import annotations

import errno
import os
import stat

from .audit import _files


def read(path: str, most: int, what: str) -> bytes:
    """Return all of a regular file of at most ``most`` bytes, called ``what`` in messages.

    Neither it nor a directory on the way to it may be others' to write; what is looked at is what was
    opened. Raises OSError: EPERM where others can write, EINVAL for no regular file, EFBIG, ELOOP for a link.
    """
    _files.judge_directory(path, what)
    # O_NONBLOCK: a FIFO must be refused below, not waited for.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode):
            raise OSError(errno.EINVAL, f"{what} must be a regular file", path)
        if seen.st_uid not in (0, os.geteuid()) or seen.st_mode & 0o022:
            mode = f"{seen.st_mode & 0o7777:o}"
            raise OSError(errno.EPERM, f"others can write {what} (uid {seen.st_uid}, mode {mode})", path)
        return _all(fd, path, most, what)
    finally:
        os.close(fd)


def _all(fd: int, path: str, most: int, what: str) -> bytes:
    parts, size = [], 0
    while chunk := os.read(fd, 1 << 16):
        parts.append(chunk)
        size += len(chunk)
        if size > most:
            raise OSError(errno.EFBIG, f"{what} has more than {most} bytes", path)
    return b"".join(parts)
