"""A mirror in the journal of systemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from . import _journal_entry, _line
from ._checked import socket_path
from ._datagrams import Datagrams
from ._mirror import Mirror

#: Of all our entries: ``journalctl MESSAGE_ID=…`` finds them. Random, and never another one.
MESSAGE_ID = "ff63738a60ea479a9d086ee06aceb740"


class Journald(Mirror):
    """Sends each record to journald by its native protocol, over its datagram socket.

    Accepted: the kernel has put the datagram into journald's queue, which survives a
    restart of journald where systemd holds the socket. Never known: whether journald
    stored it. On a full disk, or when it limits the rate, it drops entries and no sender
    hears of it. journald itself adds ``_PID`` and ``_UID`` of the sender.

    An entry has the whole line in ``SAFESPAWN_REC``, and to search by ``SAFESPAWN_EVENT``,
    ``SAFESPAWN_CHAIN``, ``SAFESPAWN_N`` and, for records of a spawn, ``SAFESPAWN_SID``.
    ``MESSAGE`` is a short text for people. ``PRIORITY`` depends on the event, from 1 for a
    break-glass to 6; journald writes 2 and less to disk at once.

    A journald that does not read is waited for 0.2 seconds, once; what has no room then is
    dropped. Lines of 8000 bytes fit the socket's buffer many times: a longer record than
    that takes is dropped (EMSGSIZE), never passed as a file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = "/run/systemd/journal/socket",
        *,
        events: Iterable[str] | None = None,
        name: str = "journald",
    ) -> None:
        super().__init__(name, events)
        self.path = socket_path("path", path)
        self._channel: Datagrams | None = None

    def open(self) -> None:
        """Connect to the socket. Raises OSError."""
        self._channel = Datagrams(
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC), self.path
        )

    def send(self, line: bytes) -> None:
        """Send one entry. Raises OSError."""
        if self._channel is None:
            raise ConnectionError("not open")
        self._channel.send(_entry(line))

    def close(self) -> None:
        """Close the socket."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _entry(line: bytes) -> bytes:
    about = _line.envelope(line)
    fields = [
        ("MESSAGE", _line.summary(line, about).encode("ascii")),
        ("MESSAGE_ID", MESSAGE_ID.encode("ascii")),
        ("PRIORITY", b"%d" % about.severity),
        ("SYSLOG_IDENTIFIER", b"safespawn"),
        ("SAFESPAWN_EVENT", about.event.encode("ascii")),
        ("SAFESPAWN_CHAIN", about.chain.encode("ascii")),
        ("SAFESPAWN_N", b"%d" % about.number),
        ("SAFESPAWN_REC", line),
    ]
    if about.sid is not None:
        fields.append(("SAFESPAWN_SID", about.sid.encode("ascii")))
    return _journal_entry.encode(fields)
