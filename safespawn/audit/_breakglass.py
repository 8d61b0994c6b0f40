"""Going on without a record, when the administrator has allowed it beforehand.

For the day when the disk of a machine is full, and its daemon must start the program that makes room.
"""

from __future__ import annotations

import contextlib
import os
import stat

from .. import _binding
from .._errors import AuditError
from . import _files

#: The administrator's consent: this file, made by root.
ALLOWED = "/etc/safespawn/allow-breakglass"
#: Whoever breaks the glass says why.
VARIABLE = "SAFESPAWN_BREAKGLASS"

#: Facility authpriv, severity critical (RFC 5424).
_PRIORITY = 10 << 3 | 2


def reason() -> str | None:
    """Return why a program may start without its record; None when it may not."""
    text = None if _binding.is_secure() else os.environ.get(VARIABLE)
    return text if text and _is_allowed() else None


def _is_allowed() -> bool:
    try:
        seen = os.lstat(ALLOWED)
        _files.judge_directory(ALLOWED)
    except (OSError, AuditError):
        return False
    return stat.S_ISREG(seen.st_mode) and seen.st_uid == 0 and not seen.st_mode & 0o022


def tell(text: str) -> None:
    """Tell the kernel's log and syslog, as far as they listen; neither is waited for."""
    line = f"safespawn[{os.getpid()}]: {text}".encode("ascii", "backslashreplace")
    with contextlib.suppress(OSError):
        fd = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.write(fd, b"<%d>%s\n" % (_PRIORITY, line[:900]))  # printk cuts at about 1 KB
        finally:
            os.close(fd)
    with contextlib.suppress(OSError, ImportError):
        import socket  # noqa: PLC0415 - for a day that may never come, and which may have no descriptor left

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(b"<%d>%s" % (_PRIORITY, line), "/dev/log")
