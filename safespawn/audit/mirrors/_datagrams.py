"""A connected datagram socket that waits for room a little, and never for long."""

from __future__ import annotations

import errno
import select
import socket
import time
from typing import Any

from ._held import Held

#: How long a sender waits for a receiver that does not read, in seconds. A Unix socket
#: holds some ten datagrams (net.unix.max_dgram_qlen), so without waiting most of a burst
#: would be lost while the receiver is well.
PATIENCE = 0.2


class Datagrams:
    """Sends one datagram for each record.

    A receiver that has not read for ``PATIENCE`` seconds is not waited for again until
    a datagram gets through: a blocking sender hangs for good when journald is stopped.
    """

    def __init__(self, sock: socket.socket, address: Any) -> None:
        """Connect ``sock`` to an address of its family; it is closed if that fails. Raises OSError."""
        self._to = address
        self._stuck = False
        try:
            sock.setblocking(False)
            sock.connect(address)
        except OSError as problem:
            sock.close()
            raise OSError(problem.errno, f"{problem.strerror or problem}: {address}") from problem
        self._held = Held(sock)

    def send(self, data: bytes) -> None:
        """Send one datagram. Raises OSError; BlockingIOError if there was no room in time."""
        sock = self._held.get()
        deadline = time.monotonic() + (0 if self._stuck else PATIENCE)
        while not _is_taken(sock, data):
            left = deadline - time.monotonic()
            if left <= 0:
                self._stuck = True
                raise BlockingIOError(errno.EAGAIN, f"the receiver does not read: {self._to}")
            _wait_for_room(sock, left)
        self._stuck = False

    def close(self) -> None:
        """Close the socket."""
        self._held.close()


def _is_taken(sock: socket.socket, data: bytes) -> bool:
    try:
        sock.send(data, socket.MSG_NOSIGNAL)  # it does not block: the socket is set so
    except BlockingIOError:
        return False
    return True


def _wait_for_room(sock: socket.socket, seconds: float) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    poll.poll(seconds * 1000)
