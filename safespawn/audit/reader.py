"""Reads ledgers: all segments in order, line by line, in bounded memory, whatever is in them.

Nothing here looks whether a record is genuine: `safespawn audit verify` does.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

from .._descriptors import identity
from ._lines import LINE_MAX, Record, parse, too_long, unended
from ._segments import numbered
from ._tail import follow

__all__ = ["LINE_MAX", "Record", "follow", "records", "segments"]

#: Bytes read at a time, and between two calls of ``progress``.
_BUFFER, _STEP = 1 << 18, 1 << 20

Progress = Callable[[int, int | None], None]


def segments(path: str) -> list[str]:
    """Return the files of a ledger that exist, the oldest first: PATH.1, PATH.2 and so on, then PATH."""
    return [one for _, one in numbered(path)] + [path] * os.path.exists(path)


def records(path: str, *, progress: Progress | None = None) -> Iterator[Record]:
    """Yield every line of a ledger, in the order of its segments; of ``-``, standard input.

    ``progress`` is called about once for every MiB with the bytes that were read and the bytes there are
    (None where that is not known). A segment that is deleted before its turn gives one record
    with a problem. Raises OSError if the ledger, or a segment that exists, cannot be read.
    """
    count = _Count(progress)
    if path == "-":
        with open(0, "rb", buffering=_BUFFER, closefd=False) as file:
            yield from _lines(file, "-", count)
        return
    current = _opened(path)
    try:
        # Looked for after that: a rotation in between only names again what we hold already.
        older = [one for _, one in numbered(path)]
        if current is None and not older:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        count.expect(older, current)
        held = None if current is None else identity(current.fileno())
        for one in older:
            yield from _segment(one, held, count)
        if current is not None:
            yield from _lines(current, os.path.basename(path), count)
    finally:
        if current is not None:
            current.close()


def _opened(path: str) -> BinaryIO | None:
    try:
        return open(path, "rb", buffering=_BUFFER)
    except FileNotFoundError:
        return None


def _segment(path: str, held: tuple[int, int] | None, count: _Count) -> Iterator[Record]:
    name, file = os.path.basename(path), _opened(path)
    if file is None:
        yield Record(b"", {}, f"{name}:0", "the segment was deleted before it was read")
        return
    with file:
        if identity(file.fileno()) != held:
            yield from _lines(file, name, count)


class _Count:
    """How much was read, told now and then."""

    def __init__(self, tell: Progress | None) -> None:
        self._tell = tell
        self._total: int | None = None
        self._done = 0
        self._next = _STEP

    def expect(self, older: list[str], current: BinaryIO | None) -> None:
        """Look how much there is. A pipe has no size."""
        seen = [os.stat(one) for one in older if os.path.exists(one)]
        seen += [os.fstat(current.fileno())] if current else []
        if all(stat.S_ISREG(one.st_mode) for one in seen):
            self._total = sum(one.st_size for one in seen)

    def add(self, size: int) -> None:
        """Count, and tell when it is time."""
        self._done += size
        if self._done >= self._next and self._tell is not None:
            self._next = self._done + _STEP
            self._tell(self._done, self._total)


def _lines(file: BinaryIO, name: str, count: _Count) -> Iterator[Record]:
    number = 0
    # One byte more than a record may have: whatever fills that is too long, and its rest is skipped.
    while line := file.readline(LINE_MAX + 1):
        number += 1
        count.add(len(line))
        where = f"{name}:{number}"
        if len(line) > LINE_MAX:
            _skip(file, line, count)
            yield too_long(line, where)
        elif line.endswith(b"\n"):
            yield parse(line[:-1], where)
        else:
            yield unended(line, where)


def _skip(file: BinaryIO, piece: bytes, count: _Count) -> None:
    while piece and not piece.endswith(b"\n"):
        piece = file.readline(_BUFFER)
        count.add(len(piece))
