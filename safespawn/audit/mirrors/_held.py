"""A socket of ours that stays ours: the lines must not land in a file of the application."""

from __future__ import annotations

import errno
import fcntl
import socket

from ..._descriptors import LOW_FD, identity


def _lifted(sock: socket.socket) -> socket.socket:
    try:
        high = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, LOW_FD)
    except OSError:  # the limit of open files is lower than that
        return sock
    lifted = socket.socket(sock.family, sock.type, sock.proto, fileno=high)
    lifted.settimeout(sock.gettimeout())
    sock.close()
    return lifted


class Held:
    """A socket under a high number, looked at before each use.

    ``os.closerange`` in a daemon closes it behind our back, and the next file that is
    opened may get its number.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = _lifted(sock)
        self._identity = identity(self._sock.fileno())

    def _is_ours(self) -> bool:
        try:
            return identity(self._sock.fileno()) == self._identity
        except OSError:
            return False

    def get(self) -> socket.socket:
        """Return the socket. Raises ConnectionError if somebody closed it."""
        if not self._is_ours():
            raise ConnectionError(errno.EBADF, "somebody closed the mirror's socket")
        return self._sock

    def close(self) -> None:
        """Close it, unless its number is somebody else's by now."""
        if self._is_ours():
            self._sock.close()
        else:
            self._sock.detach()
