"""Follows a ledger while it is written: over rotation and truncation, and before it exists."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Generator, Iterator

from .._descriptors import identity
from ._lines import LINE_MAX, Record, parse, too_long, unended
from ._segments import numbered

#: Seconds between two looks. The standard library has no inotify, and a look costs a few system
#: calls for each file that is watched.
INTERVAL = 0.2
#: A process notices a rotation when it writes its next checkpoint, and writes to the old segment until
#: then: so many of them are watched beside the current one.
WATCHED = 8
_CHUNK = 1 << 16
#: What was read last is compared before more is read: a file that was emptied and has grown
#: again has something else there.
_MARK = 64


def follow(path: str, stop: threading.Event) -> Generator[Record | None, None, None]:
    """Yield records as they are written, from now on, and None whenever there are no more for the moment.

    The ledger need not exist yet. Its segments are read in order when it is rotated, and each record
    comes once; a file that was cut gives a record with a problem, and is read anew. After
    ``stop`` was set what is there is still read. Looks every INTERVAL seconds.
    Raises OSError, for a file that is no regular one too.
    """
    with contextlib.closing(_Ledger(path)) as ledger:
        ended = False
        while True:
            yield from ledger.read()
            yield None
            if ended:
                return
            ended = stop.wait(INTERVAL)


class _Ledger:
    """The segments that are watched, the oldest first."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._sources: list[_Source] = []
        #: Older segments that were met. Not the highest number: anybody can make a name with a higher one.
        self._met: set[int] = set()
        while True:
            before = numbered(path)
            current = _opened(path)
            if current is not None:
                self._sources = [current]
            if numbered(path) == before:
                break
            self.close()  # rotated meanwhile: which segments are old would not be certain
        self._met.update(number for number, _ in before)
        if current is not None:
            current.to_end()

    def close(self) -> None:
        """Close all files."""
        while self._sources:
            os.close(self._sources.pop().fd)

    def read(self) -> Iterator[Record]:
        """Yield everything that is there and was not read."""
        while True:
            # The old ones too when there are new ones: they may have got their last lines in between.
            for source in tuple(self._sources):
                yield from source.read()
            if not self._take_new():
                break
        while len(self._sources) > WATCHED + 1:
            oldest = self._sources.pop(0)
            os.close(oldest.fd)
            yield from oldest.rest()

    def _take_new(self) -> bool:
        """Open what came by a rotation; False if there was none."""
        held = {source.identity: source for source in self._sources}
        try:
            seen = os.stat(self._path)
        except FileNotFoundError:
            return False
        if (seen.st_dev, seen.st_ino) in held or (current := _opened(self._path)) is None:
            return False
        self._sources.append(current)
        held[current.identity] = current
        for number, name in numbered(self._path):
            if number not in self._met:
                self._met.add(number)
                self._take_older(name, held)
        return True

    def _take_older(self, name: str, held: dict[tuple[int, int], _Source]) -> None:
        source = _opened(name)
        if source is None:
            return
        if source.identity in held:
            held[source.identity].name = source.name
            os.close(source.fd)
        else:
            self._sources.insert(-1, source)


def _opened(path: str) -> _Source | None:
    try:
        # O_NONBLOCK: a FIFO is refused below, not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return _Source(fd, os.path.basename(path))
    except BaseException:
        os.close(fd)
        raise


class _Source:
    """One open segment, and how far it was read."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self.identity = identity(fd)
        self._start_at(0)

    def _start_at(self, position: int) -> None:
        self._position = self._line_at = position
        self._line, self._length = bytearray(), 0
        self._mark = os.pread(self.fd, min(_MARK, position), max(0, position - _MARK))

    def to_end(self) -> None:
        """Leave out what is there, but not the line that is being written."""
        size = os.fstat(self.fd).st_size
        tail = os.pread(self.fd, LINE_MAX, max(0, size - LINE_MAX))
        self._start_at(size - len(tail) + tail.rfind(b"\n") + 1)

    def read(self) -> Iterator[Record]:
        """Yield what has been written since."""
        yield from self._restart()
        while chunk := os.pread(self.fd, _CHUNK, self._position):
            self._position += len(chunk)
            self._mark = (self._mark + chunk[-_MARK:])[-_MARK:]
            *whole, rest = chunk.split(b"\n")
            for piece in whole:
                yield self._ended(piece)
            self._keep(rest)

    def rest(self) -> Iterator[Record]:
        """Yield the line at the end that has no newline, if there is one."""
        if self._length:
            yield unended(bytes(self._line), self._where())

    def _restart(self) -> Iterator[Record]:
        """Begin anew where somebody has cut the file, which no writer of ours does."""
        size = os.fstat(self.fd).st_size
        before = os.pread(self.fd, len(self._mark), self._position - len(self._mark))
        if size >= self._position and before == self._mark:
            return
        problem = f"the file was cut: {self._position} bytes were read of it, it has {size} now"
        yield Record(bytes(self._line), {}, self._where(), problem)
        self._start_at(0)

    def _where(self) -> str:
        return f"{self.name}@{self._line_at}"

    def _keep(self, piece: bytes) -> None:
        self._line += piece[: max(0, LINE_MAX - 1 - len(self._line))]
        self._length += len(piece)

    def _ended(self, piece: bytes) -> Record:
        self._keep(piece)
        line, where, length = bytes(self._line), self._where(), self._length
        self._line_at += length + 1
        self._line, self._length = bytearray(), 0
        return too_long(line, where) if length >= LINE_MAX else parse(line, where)
