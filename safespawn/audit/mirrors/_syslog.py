"""A mirror in a syslog receiver."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from typing import Literal

from ..._values import choice, shown
from . import _line, _rfc5424
from ._checked import hostname, port, seconds, socket_path
from ._datagrams import Datagrams
from ._mirror import Mirror
from ._stream import Stream

Transport = Literal["unix", "udp", "tcp"]

_transport = choice("unix", "udp", "tcp")
_facility = choice(*_rfc5424.FACILITIES)


def _udp(address: tuple[str, int]) -> Datagrams:
    """Connect to the first address that the name has. Raises ConnectionError."""
    try:
        family, kind, protocol, _, found = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0]
        return Datagrams(socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol), found)
    except OSError as problem:
        raise ConnectionError(problem.errno, f"{problem.strerror or problem}: {address}") from problem


class Syslog(Mirror):
    """Sends each record as a message of RFC 5424: to ``/dev/log``, or to a host.

    ``address``: the path of a Unix socket, or ``(host, port)``. ``transport``: ``unix``,
    ``udp`` or ``tcp``; by default unix for a path and tcp for a host. ``facility`` is one of
    user, daemon, auth, authpriv, audit, local0 to local7. ``timeout``, seconds: how long
    a TCP receiver may take to answer the connection, or not read, before the connection
    is given up.

    Accepted means that the kernel took it, and no receiver answers. Never known: whether
    it was kept. ``unix``: it is in the receiver's queue. ``udp`` (RFC 5426): it has left, or
    not; a line of up to 8000 bytes is more than most networks carry in one packet, and
    one lost fragment loses it; receivers need not take more than 480 bytes. ``tcp``
    (RFC 6587, with octet counting; not encrypted): what the two kernels hold, up to 128 KiB
    of it here, is lost and not counted when the connection breaks. A connection that was
    closed is seen before the next record is sent.

    The message is the whole line: ASCII, so without a byte order mark. MSGID is the event;
    the structured data ``safespawn@32473`` has ``c``, ``n`` and ``sid``; 32473 is the number
    for examples (RFC 5612), as we have none of our own. TIMESTAMP is that of the record.
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | tuple[str, int] = "/dev/log",
        transport: Transport | None = None,
        *,
        facility: str = "authpriv",
        timeout: float = 5.0,
        events: Iterable[str] | None = None,
        name: str = "syslog",
    ) -> None:
        super().__init__(name, events)
        self.address = _checked_address(address)
        is_path = isinstance(self.address, str)
        self.transport = _transport("transport", transport or ("unix" if is_path else "tcp"))
        if is_path != (self.transport == "unix"):
            raise ValueError(f"transport={self.transport!r} does not go with address={shown(address)}")
        self.facility = _facility("facility", facility)
        self.timeout = seconds("timeout", timeout)
        self._channel: Datagrams | Stream | None = None

    def open(self) -> None:
        """Connect to the Unix socket; a host is waited for only when there is something to send."""
        if isinstance(self.address, str):
            self._channel = Datagrams(
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC), self.address
            )

    def send(self, line: bytes) -> None:
        """Send one message. Raises OSError."""
        message = self._message(line)
        channel = self._connected()
        try:
            channel.send(_rfc5424.frame(message) if self.transport == "tcp" else message)
        except ConnectionRefusedError as problem:
            if self.transport != "udp":
                raise
            # It answers an earlier datagram. A new socket would know nothing of that, and take this one.
            raise OSError(errno.EHOSTUNREACH, f"nobody listens: {self.address}") from problem

    def close(self) -> None:
        """Close the socket."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _connected(self) -> Datagrams | Stream:
        if self._channel is None:
            if isinstance(self.address, str):
                raise ConnectionError("not open")
            if self.transport == "udp":
                self._channel = _udp(self.address)
            else:
                self._channel = Stream(*self.address, self.timeout)
        return self._channel

    def _message(self, line: bytes) -> bytes:
        about = _line.envelope(line)
        data = {"c": about.chain, "n": str(about.number)}
        if about.sid is not None:
            data["sid"] = about.sid
        return _rfc5424.message(
            line,
            priority=_rfc5424.FACILITIES[self.facility] * 8 + about.severity,
            time_ns=about.time_ns,
            host=os.uname().nodename,
            app="safespawn",
            process=os.getpid(),
            kind=about.event,
            data=_rfc5424.structured_data(data),
        )


def _checked_address(value: object) -> str | tuple[str, int]:
    if isinstance(value, tuple):
        if len(value) != 2:
            raise ValueError(f"address must be a path or (host, port), not {shown(value)}")
        return hostname("address[0]", value[0]), port("address[1]", value[1])
    return socket_path("address", value)
