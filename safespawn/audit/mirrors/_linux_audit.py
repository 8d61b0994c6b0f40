"""A mirror in the kernel's audit, and so in auditd."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable

from . import _audit_fields, _line
from ._audit_netlink import AuditNetlink, Status, unread_bytes
from ._mirror import Mirror

#: What stands there as a witness. Each record would be too much for the kernel's backlog.
EVENTS = frozenset({"checkpoint", "spawn.denied", "cred.change", "breakglass", "audit.degraded"})

#: With more than this waiting in auditd's socket, of 208 KiB by default, it is not reading.
_UNREAD_MAX = 65536

#: How long a record waits for room, once, in seconds, and how often it looks.
_PATIENCE, _LOOK_EVERY = 0.2, 0.01


class LinuxAudit(Mirror):
    """Sends records to the kernel's audit as AUDIT_TRUSTED_APP; auditd keeps them.

    ``events``: by default checkpoints, denials, changes of credentials, break-glasses and
    degradations only. Fields start with ``ss_``; ``ss_rec`` is the line in hex where it
    has at most about 3800 bytes, ``ss_sha256`` its digest always. ``ausearch -m TRUSTED_APP``
    finds them, and the kernel adds pid, uid, auid and session.

    Accepted: audit is enabled, an auditd is registered and reads its socket, the kernel's
    backlog is not half full, and after all that the kernel acknowledged the record. The
    acknowledgement alone means nothing: the kernel gives it with audit disabled, too. Never
    known: whether auditd wrote it.

    Needs CAP_AUDIT_WRITE and CAP_AUDIT_CONTROL in the first user and pid namespaces, at each
    record: after a drop of privileges every record is dropped (EPERM). ``systemd-journald``
    turns audit off when it starts, unless its ``Audit=`` is set.

    Sending to a full backlog holds the thread in the kernel, where no signal reaches it, and
    every ``setuid`` of the process with it; that is why half full is full here. Where
    others fill the backlog, asking for its state can still hold the thread, for more than half
    a second a time.
    """

    def __init__(self, *, events: Iterable[str] | None = EVENTS, name: str = "audit") -> None:
        super().__init__(name, events)
        self._channel: AuditNetlink | None = None
        self._stuck = False

    def open(self) -> None:
        """Open a netlink socket. Raises OSError."""
        self._channel = AuditNetlink()

    def send(self, line: bytes) -> None:
        """Send one record, if audit is in a state to keep it. Raises OSError."""
        text = _audit_fields.body(line, _line.envelope(line))
        channel = self._opened()
        self._wait_for_room(channel)
        channel.tell(text)

    def check(self) -> str | None:
        """Return why audit would not keep a record, or None."""
        try:
            status = _status(self._opened())
        except OSError as problem:
            return problem.strerror or str(problem)
        return _off(status) or _full(status)

    def close(self) -> None:
        """Close the socket."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _opened(self) -> AuditNetlink:
        if self._channel is None:
            raise ConnectionError("not open")
        return self._channel

    def _wait_for_room(self, channel: AuditNetlink) -> None:
        deadline = time.monotonic() + (0 if self._stuck else _PATIENCE)
        while True:
            status = _status(channel)
            off, full = _off(status), _full(status)
            if off:
                raise OSError(errno.ENOTCONN, off)
            self._stuck = full is not None and time.monotonic() >= deadline
            if self._stuck:
                raise BlockingIOError(errno.EAGAIN, full)
            if full is None:
                return
            time.sleep(_LOOK_EVERY)


def _status(channel: AuditNetlink) -> Status:
    try:
        return channel.status()
    except PermissionError as problem:
        why = "not permitted to see whether audit keeps records (CAP_AUDIT_CONTROL)"
        raise PermissionError(errno.EPERM, why) from problem
    except ConnectionRefusedError as problem:  # audit_netlink_ok() in kernel/audit.c
        raise PermissionError(errno.EPERM, "not in the first user namespace") from problem


def _off(status: Status) -> str | None:
    if status.enabled == 0:
        return "audit is disabled in the kernel"
    if status.pid == 0:
        return "no auditd is registered"
    return None


def _full(status: Status) -> str | None:
    if status.backlog_limit and status.backlog * 2 >= status.backlog_limit:
        return f"the backlog is half full: {status.backlog} of {status.backlog_limit}"
    unread = unread_bytes(status.pid)
    if unread is not None and unread > _UNREAD_MAX:
        return f"auditd does not read: {unread} bytes wait"
    return None
