"""A TCP connection to a receiver that never answers."""

from __future__ import annotations

import errno
import select
import socket

from ._held import Held

#: The kernel gives up a connection whose data was not acknowledged for so long, in
#: milliseconds (TCP_USER_TIMEOUT, tcp(7)): a host that is gone answers nothing.
_UNACKNOWLEDGED_MS = 30_000
#: How much the kernel here may keep that the other one has not taken, in bytes (socket(7): it
#: takes twice that). What is in there is lost, uncounted, with the connection.
_SEND_BUFFER = 65536


class Stream:
    """Sends frames over a connection that is made when the first one is sent."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self._to = (host, port)
        self._timeout = timeout
        self._held: Held | None = None

    def send(self, frame: bytes) -> None:
        """Send the whole frame. Raises ConnectionError, or TimeoutError, and is closed then."""
        try:
            sock = self._connected().get()
            _look_for_end(sock)
            sock.sendall(frame, socket.MSG_NOSIGNAL)
        except TimeoutError as problem:
            # Part of the frame may be out: the next one would be read as its rest.
            self.close()
            raise TimeoutError(
                errno.ETIMEDOUT, f"{self._to}: not taken for {self._timeout} seconds"
            ) from problem
        except OSError as problem:
            self.close()
            raise ConnectionError(problem.errno, f"{problem.strerror or problem}: {self._to}") from problem

    def close(self) -> None:
        """Close the connection; what the kernel still has goes on its way."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _connected(self) -> Held:
        if self._held is None:
            sock = socket.create_connection(self._to, self._timeout)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                self._held = Held(sock)
            except OSError:
                sock.close()
                raise
        return self._held


def _look_for_end(sock: socket.socket) -> None:
    """Without this look the first record after a receiver's restart would be taken, and lost."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    if poll.poll(0):
        raise ConnectionResetError(errno.ECONNRESET, "the receiver closed the connection")
