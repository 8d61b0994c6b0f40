"""The pipes between us and a child: made before it, fed and drained while it runs."""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass, field
from typing import IO

from ._spec import DEVNULL, PIPE, STDOUT, Request

_CHUNK = 65536
_NONE = [-1, -1, -1]


@dataclass
class Streams:
    """Sources for the child's 0, 1 and 2, and our ends of the pipes among them.

    ``opened`` are the descriptors that only the child needs; :meth:`started` closes them.
    """

    sources: list[int] = field(default_factory=lambda: [0, 1, 2])
    ours: list[int] = field(default_factory=lambda: [-1, -1, -1])
    opened: list[int] = field(default_factory=list)

    def started(self) -> None:
        """Close what belongs to the child alone."""
        while self.opened:
            os.close(self.opened.pop())

    def abort(self) -> None:
        """Close everything."""
        self.started()
        for i, fd in enumerate(self.ours):
            if fd >= 0:
                os.close(fd)
            self.ours[i] = -1

    def files(self) -> tuple[IO[bytes] | None, IO[bytes] | None, IO[bytes] | None]:
        """Return file objects for our ends; they own the descriptors from here on."""
        if self.ours == _NONE:
            return None, None, None
        made = [None if fd < 0 else open(fd, "wb" if i == 0 else "rb") for i, fd in enumerate(self.ours)]
        self.ours = [-1, -1, -1]
        return made[0], made[1], made[2]


def prepare(request: Request, is_open: tuple[bool, bool, bool]) -> Streams:
    """Open pipes and /dev/null as the request wants; ``is_open`` tells of our own 0, 1, 2.

    A standard descriptor that is closed here is /dev/null in the child: a program that
    opened a file as its own stderr would write messages into it.
    """
    streams = Streams()
    try:
        for fd, wanted in enumerate((request.stdin, request.stdout, request.stderr)):
            _prepare_one(streams, fd, wanted, is_open[fd])
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
        read, write = os.pipe2(os.O_CLOEXEC)
        theirs, streams.ours[fd] = (read, write) if fd == 0 else (write, read)
        streams.opened.append(theirs)
        streams.sources[fd] = theirs
    elif wanted in (None, DEVNULL):
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        streams.opened.append(null)
        streams.sources[fd] = null
    else:
        streams.sources[fd] = int(wanted)


def exchange(
    stdin: IO[bytes] | None,
    outputs: list[IO[bytes] | None],
    data: memoryview,
    collected: list[bytearray],
    deadline: float | None,
) -> int:
    """Feed and drain until all ends are closed; returns the number of bytes fed.

    Raises TimeoutError with what was read so far in ``collected``; call it again to go on.
    """
    poll = select.poll()
    open_files: dict[int, IO[bytes]] = {}
    sinks: dict[int, bytearray] = {}
    fed = 0
    if stdin is not None and not stdin.closed:
        if len(data):
            poll.register(stdin, select.POLLOUT)
            open_files[stdin.fileno()] = stdin
        else:
            _close_input(stdin)
    for stream, sink in zip(outputs, collected):
        if stream is not None and not stream.closed:
            poll.register(stream, select.POLLIN)
            open_files[stream.fileno()] = stream
            sinks[stream.fileno()] = sink
    while open_files:
        for fd, _ in poll.poll(_left_ms(deadline, fed)):
            if fd in sinks:
                more = _drain(fd, sinks[fd])
            else:
                count = _feed(fd, data[fed:])
                fed += max(count, 0)
                more = count >= 0 and fed < len(data)
            if not more:
                poll.unregister(fd)
                _close_input(open_files.pop(fd))
    return fed


class Late(TimeoutError):
    """The exchange ran out of time; ``fed`` bytes had been written."""

    def __init__(self, fed: int) -> None:
        """Remember how far the input got."""
        super().__init__("the exchange took too long")
        self.fed = fed


def _left_ms(deadline: float | None, fed: int) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise Late(fed)
    return left * 1000


def _drain(fd: int, sink: bytearray) -> bool:
    chunk = os.read(fd, _CHUNK)
    sink += chunk
    return bool(chunk)


def _feed(fd: int, data: memoryview) -> int:
    try:
        # No more than PIPE_BUF: a pipe that is writable takes that much without blocking.
        return os.write(fd, data[: select.PIPE_BUF])
    except BrokenPipeError:
        return -1  # the program does not want the rest; as subprocess, no error


def _close_input(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        pass
