"""The pipes between us and a child: made before it, fed and drained while it runs."""

from __future__ import annotations

import contextlib
import io
import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import IO, Any

from ._spec import DEVNULL, PIPE, STDOUT, Request
from ._surely import keep

_CHUNK = 65536


@dataclass
class Streams:
    """Sources for the child's 0, 1 and 2, and our ends of the pipes among them.

    ``opened`` is all that was opened: objects that own their descriptors, so that none is lost to a signal
    handler that raises, and closing one twice is no error. ``theirs`` are those that only the child needs.
    """

    sources: list[int] = field(default_factory=lambda: [0, 1, 2])
    ours: list[IO[bytes] | None] = field(default_factory=lambda: [None, None, None])
    opened: list[io.FileIO] = field(default_factory=list)
    theirs: list[io.FileIO] = field(default_factory=list)

    def started(self) -> None:
        """Close what belongs to the child alone."""
        for file in self.theirs:
            _shut(file)

    def abort(self) -> None:
        """Close everything."""
        for file in self.opened:
            _shut(file)


def _shut(file: io.FileIO) -> None:
    """Close what nobody has written to: it is closed whatever close(2) answers, and a program may run."""
    with contextlib.suppress(OSError):
        file.close()


def prepare(request: Request, is_open: tuple[bool, bool, bool]) -> Streams:
    """Open pipes and /dev/null as the request wants; ``is_open`` tells of our own 0, 1, 2.

    A standard descriptor that is closed here is /dev/null in the child: a program that
    opened a file as its own stderr would write messages into it. So is one that is close-on-exec
    and not named: it is a private file of ours that came to lie there.
    """
    streams = Streams()
    if request.stdin is request.stdout is request.stderr is None and all(is_open):
        return streams
    try:
        for fd, wanted in enumerate((request.stdin, request.stdout, request.stderr)):
            _prepare_one(streams, fd, wanted, is_open[fd] or fd in request.pass_fds)
    except BaseException:
        streams.abort()
        raise
    return streams


def _prepare_one(streams: Streams, fd: int, wanted: int | None, is_open: bool) -> None:
    if wanted is None and is_open:
        return
    if wanted == STDOUT:
        streams.sources[fd] = streams.sources[1]
    elif wanted == PIPE:
        _open(streams, chain.from_iterable(map(os.pipe2, (os.O_CLOEXEC,))), ("rb", "wb"))
        read, write = streams.opened[-2:]
        streams.ours[fd] = io.BufferedWriter(write) if fd == 0 else io.BufferedReader(read)
        _give(streams, fd, read if fd == 0 else write)
    elif wanted in (None, DEVNULL):
        _open(streams, map(os.open, (os.devnull,), (os.O_RDWR | os.O_CLOEXEC,)), ("r+b",))
        _give(streams, fd, streams.opened[-1])
    else:
        streams.sources[fd] = int(wanted)


def _open(streams: Streams, fds: Iterator[int], modes: tuple[str, ...]) -> None:
    """Open and keep in one step that no signal handler can come between: ``fds`` opens when it is asked."""
    streams.opened.extend(map(io.FileIO, fds, modes))


def _give(streams: Streams, fd: int, file: io.FileIO) -> None:
    streams.theirs.append(file)
    streams.sources[fd] = file.fileno()


class Exchange:
    """Feeding and draining of one process; survives a timeout or an exception, and goes on."""

    def __init__(self, stdin: IO[bytes] | None, stdout: IO[bytes] | None, stderr: IO[bytes] | None) -> None:
        """Start with nothing fed and nothing read."""
        self._stdin = stdin
        self._outputs: list[tuple[IO[bytes] | None, list[bytes]]] = [(stdout, []), (stderr, [])]
        self._writes: list[int] = []

    def output(self) -> tuple[bytes | None, bytes | None]:
        """Return what was read so far; None for a stream that is no pipe."""
        out, err = (None if file is None else b"".join(chunks) for file, chunks in self._outputs)
        return out, err

    def run(self, data: bytes, deadline: float | None) -> None:
        """Go on until all ends are closed. Raises TimeoutError at the deadline (monotonic)."""
        poll = select.poll()
        files: dict[int, IO[bytes]] = {}
        sinks: dict[int, list[bytes]] = {}
        for file, chunks in self._outputs:
            if file is not None and not file.closed:
                poll.register(file, select.POLLIN)
                files[file.fileno()], sinks[file.fileno()] = file, chunks
        if self._stdin is not None and not self._stdin.closed:
            _flush(self._stdin)
            poll.register(self._stdin, select.POLLOUT)
            files[self._stdin.fileno()] = self._stdin
        while files:
            for fd, _ in poll.poll(_left_ms(deadline)):
                more = _drain(fd, sinks[fd]) if fd in sinks else self._feed(fd, data)
                if not more:
                    poll.unregister(fd)
                    close(files.pop(fd))

    def _feed(self, fd: int, data: bytes) -> bool:
        fed = sum(self._writes)
        # No more than PIPE_BUF: a pipe that is writable takes that much without blocking.
        chunk = memoryview(data)[fed : fed + select.PIPE_BUF]
        try:
            keep(self._writes, os.write, fd, chunk)
        except BrokenPipeError:
            return False  # the program does not want the rest; as subprocess, no error
        self._writes[:] = [sum(self._writes)]
        return self._writes[0] < len(data)


def _left_ms(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, 86400.0) * 1000  # poll(2) counts in an int


def _drain(fd: int, chunks: list[bytes]) -> bool:
    keep(chunks, os.read, fd, _CHUNK)
    return bool(chunks[-1])


def _flush(stream: IO[bytes]) -> None:
    """Send what was written by the file object first: the input comes after it."""
    try:
        stream.flush()
    except BrokenPipeError:
        pass


def close(stream: IO[Any]) -> None:
    """Close a pipe, whether or not the program has taken what was written."""
    try:
        stream.close()
    except BrokenPipeError:
        pass
