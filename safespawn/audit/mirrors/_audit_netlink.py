"""The kernel's audit by raw netlink: audit(8) without its library."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import NamedTuple

from ._held import Held

# linux/netlink.h and linux/audit.h
_NETLINK_AUDIT = 9
_REQUEST, _ACK = 1, 4
_NLMSG_ERROR = 2
_AUDIT_GET = 1000
_AUDIT_TRUSTED_APP = 1121
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_STATUS = struct.Struct("=8I")  # the first members of struct audit_status

#: The kernel answers within the call, or by a thread of its own.
_ANSWER_SECONDS = 5.0


class Status(NamedTuple):
    """The start of ``struct audit_status``."""

    mask: int
    enabled: int
    failure: int
    pid: int
    rate_limit: int
    backlog_limit: int
    lost: int
    backlog: int


class AuditNetlink:
    """A socket to the kernel's audit."""

    def __init__(self) -> None:
        """Open it, which needs no privilege. Raises OSError (EPROTONOSUPPORT: no audit in this kernel)."""
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_AUDIT)
        try:
            sock.bind((0, 0))
            sock.settimeout(_ANSWER_SECONDS)
            self._held = Held(sock)
        except OSError:
            sock.close()
            raise
        self._sequence = 0

    def close(self) -> None:
        """Close it."""
        self._held.close()

    def status(self) -> Status:
        """Return the state of audit. Raises OSError: EPERM without CAP_AUDIT_CONTROL."""
        answer = self._ask(_AUDIT_GET, b"", 0)
        if len(answer) < _STATUS.size:
            raise OSError(errno.EBADMSG, f"audit answered {len(answer)} bytes of status")
        return Status(*_STATUS.unpack_from(answer))

    def tell(self, text: bytes) -> None:
        """Send a record of type AUDIT_TRUSTED_APP. Raises OSError: EPERM without CAP_AUDIT_WRITE.

        The kernel overwrites the last byte with a NUL, so there is one to overwrite.
        """
        self._ask(_AUDIT_TRUSTED_APP, text + b"\0", _ACK)

    def _ask(self, kind: int, data: bytes, flags: int) -> bytes:
        """Return the answer's data. Raises the OSError that the kernel answered."""
        sock = self._held.get()
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        length = _HEADER.size + len(data)
        head = _HEADER.pack(length, kind, _REQUEST | flags, self._sequence, 0)
        sock.sendto(head + data + bytes(-length % 4), (0, 0))
        while True:
            message, (sender, _) = sock.recvfrom(16384)
            if sender != 0 or len(message) < _HEADER.size:  # another process may write to us too
                continue
            _, answered, _, sequence, _ = _HEADER.unpack_from(message)
            if sequence == self._sequence:  # not what came too late for the call before
                return self._judged(answered, message[_HEADER.size :])

    @staticmethod
    def _judged(kind: int, data: bytes) -> bytes:
        if kind != _NLMSG_ERROR:
            return data
        (negative,) = struct.unpack_from("=i", data)
        if negative:
            raise OSError(-negative, os.strerror(-negative))
        return b""


def unread_bytes(pid: int) -> int | None:
    """Return what waits in auditd's netlink socket, or None where that cannot be seen.

    netlink has no other way to tell: with auditd stopped the kernel acknowledges each
    record and drops it after half a second, and its count of lost ones stays as it is.
    """
    try:
        with open(f"/proc/{pid}/net/netlink", "rb") as table:
            rows = [line.split() for line in table]
    except OSError:
        return None
    # sk Eth Pid Groups Rmem …; auditd's port is its pid, as netlink(7) assigns it.
    waiting = [row[4] for row in rows if row[1:3] == [b"%d" % _NETLINK_AUDIT, b"%d" % pid]]
    return int(waiting[0]) if waiting else None
