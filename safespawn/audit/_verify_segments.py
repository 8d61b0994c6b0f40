"""The files of a ledger: found, opened together and read, while others write and rename them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from .._descriptors import identity
from .._errors import AuditError
from ._segments import numbers

#: Rotations that may come between a look and the next before we give up.
TRIES = 100


@dataclass(frozen=True)
class Segment:
    """One open file of a ledger; ``number`` is None for the one that is being written."""

    path: str
    number: int | None
    fd: int
    size: int


def open_file(path: str) -> int:
    """Open a regular file for reading. Raises OSError; AuditError for another kind of file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise AuditError(errno.EINVAL, "not a regular file", path)
    return fd


def read_whole(path: str, limit: int) -> bytes:
    """Return what is in a file. Raises OSError; AuditError when it is longer than ``limit`` bytes."""
    fd = open_file(path)
    try:
        with open(fd, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(data) > limit:
        raise AuditError(errno.EFBIG, f"longer than {limit} bytes", path)
    return data


def _open_at(path: str, stack: contextlib.ExitStack) -> int | None:
    try:
        fd = open_file(path)
    except FileNotFoundError:
        return None
    stack.callback(os.close, fd)
    return fd


def _open_all(path: str, stack: contextlib.ExitStack) -> list[tuple[str, int | None, int]] | None:
    """Open what is there; None if something was renamed meanwhile."""
    older = numbers(path)
    names = [(f"{path}.{number}", number) for number in older]
    opened: list[tuple[str, int | None, int]] = []
    for name, number in names:
        fd = _open_at(name, stack)
        if fd is None:
            return None
        opened.append((name, number, fd))
    fd = _open_at(path, stack)
    if fd is not None:
        opened.append((path, None, fd))
    # A file that is renamed keeps its inode: seen twice, or no longer where it was.
    places = [identity(fd) for _, _, fd in opened]
    now = [place_of(name) for name, _, _ in opened]
    is_same = len(set(places)) == len(places) and places == now and numbers(path) == older
    return opened if is_same and (fd is not None or place_of(path) is None) else None


def place_of(path: str) -> tuple[int, int] | None:
    """Return device and inode of a file; None where there is none. Raises OSError."""
    try:
        return identity(path)
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def opened(path: str) -> Iterator[list[Segment]]:
    """Open all segments of a ledger as they are at one moment, the oldest first.

    A record is written to a younger file only after those before it: so the sizes are taken from
    the youngest on, and nothing behind them is read. Raises OSError; AuditError when the files are
    renamed all the time.
    """
    for _ in range(TRIES):
        with contextlib.ExitStack() as stack:
            found = _open_all(path, stack)
            if found is None:
                continue
            sizes = [os.fstat(fd).st_size for _, _, fd in reversed(found)][::-1]
            yield [Segment(*one, size) for one, size in zip(found, sizes, strict=True)]
            return
    raise AuditError(errno.EAGAIN, "cannot verify: the segments are renamed all the time", path)


def missing(segments: list[Segment], retired: set[int]) -> list[tuple[int, int]]:
    """Return the ranges of numbers that are neither there nor retired.

    Segments are retired in order, and one older segment is always left. The record about one is in a younger
    file: so that about the youngest is always there, and those about the oldest may have gone themselves.
    """
    found = {segment.number for segment in segments if segment.number is not None}
    left = {max(retired) + 1} if retired else set()
    next_number = min(retired, default=1)
    ranges = []
    for number in sorted(found | retired | left):
        if number > next_number:
            ranges.append((next_number, number - 1))
        if number in left - found:
            ranges.append((number, number))
        next_number = max(next_number, number + 1)
    return ranges
