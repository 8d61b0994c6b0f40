"""The slots of the state file: their form, how many hold a chain, and giving them back.

A slot is never another chain's later: it is emptied, and where nothing is left around it the file has a
hole. So no process needs to know which slots are free, and one that writes on against all likelihood harms
nobody. docs/audit-format.md has their form.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

#: How the file begins, and the bytes of each slot.
MAGIC, UNIT = b"SSSTATE1", 128
#: A slot: which half counts, whether it is closed, chain, epoch; twice number and seal; zeros.
FORM = struct.Struct("<II16sQQ32sQ32s16s")
#: So many chains may have a slot. A verifier can check a few more (_verify_scan.CHAINS_MAX): room for those
#: that begin at the same time, and for the one that retires segments.
MOST = 1_000_000
SPARE = 10_000

_NOTHING = bytes(UNIT)
#: Bytes that are read at once, and that a hole must have: a page, or a block of most file systems.
_CHUNK, _PAGE = 1 << 20, 4096


class Slot(NamedTuple):
    """One that holds a chain, as far as it matters whether it may be given back."""

    chain: bytes
    records: int
    is_closed: bool


def pieces(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield what is written in the file, and where; not the holes. Raises OSError."""
    at, size = 0, os.fstat(fd).st_size
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as problem:
            if problem.errno == errno.ENXIO:
                return  # nothing but a hole is left
            raise
        end = os.lseek(fd, at, os.SEEK_HOLE)
        at -= at % UNIT
        while at < end:
            data = os.pread(fd, min(_CHUNK, end - at), at)
            if not data:
                return  # cut meanwhile
            yield at, data
            at += len(data)


def units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the whole units of a piece that are not empty, and where they are in it."""
    for at in range(0, len(data) - UNIT + 1, UNIT):
        unit = data[at : at + UNIT]
        if unit != _NOTHING:
            yield at, unit


def used(fd: int) -> int:
    """Return how many slots hold a chain. Raises OSError."""
    return max(0, sum(1 for _, data in pieces(fd) for _ in units(data)) - 1)  # the first unit is none


class Room:
    """How many slots are used, without a look at each as long as there are few.

    The blocks of the file tell how many there can be, and after a count its size: slots are appended. A
    forked child inherits what was counted.
    """

    def __init__(self, most: int) -> None:
        """``most``: so many there may be."""
        self.most = most
        self._counted, self._size, self._again = 0, 0, self.notice_at

    @property
    def notice_at(self) -> int:
        """From where on somebody should be told."""
        return self.most * 9 // 10

    def used(self, fd: int) -> int:
        """Return how many are used, or a few more: never less. Raises OSError."""
        seen = os.fstat(fd)
        bound = min(seen.st_blocks * 512 // UNIT, self._counted + (seen.st_size - self._size) // UNIT)
        if bound >= self._again:
            bound = self._counted = used(fd)
            self._size = seen.st_size
            # Seldom: a million take a quarter of a second. At the limit always, because that may be over.
            self._again = max(self.notice_at, min(bound + self.most // 100 + 1, self.most))
        return bound


def give_back(fd: int, is_over: Callable[[Slot], bool], punch: Callable[[int, int], None]) -> None:
    """Empty the slots of chains that are over. ``punch`` makes a hole. Raises OSError."""
    for at, data in pieces(fd):
        left = bytearray(data)
        for where, unit in units(data):
            if at + where and is_over(slot(unit)):
                os.pwrite(fd, _NOTHING, at + where)
                left[where : where + UNIT] = _NOTHING
        if left != data:
            _punch_empty(at, left, punch)


def slot(unit: bytes) -> Slot:
    """Return what a unit holds; of the first one, nonsense that is no chain's."""
    which, closed, chain, _, first, _, second, _, _ = FORM.unpack(unit)
    return Slot(chain, second if which else first, bool(closed))


def _punch_empty(at: int, data: bytearray, punch: Callable[[int, int], None]) -> None:
    """Make holes of whole pages: others append only behind the end, which is in none."""
    for where in range(-at % _PAGE, len(data) - _PAGE + 1, _PAGE):
        if not any(data[where : where + _PAGE]):
            punch(at + where, _PAGE)
