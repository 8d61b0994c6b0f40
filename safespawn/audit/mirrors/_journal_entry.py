"""The native form of journald, as "Native Journal Protocol" of systemd tells it. Pure."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable

#: journald drops a field with another name without a word.
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


def encode(fields: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the datagram of one entry.

    A value with a newline in it is told with its length: without that, what follows the
    newline would be fields of its own. Raises ValueError for a name that journald refuses.
    """
    parts = []
    for name, value in fields:
        if not _NAME.fullmatch(name):
            raise ValueError(f"no name of a journal field: {name!r}")
        key = name.encode("ascii")
        if b"\n" in value:
            parts.append(key + b"\n" + struct.pack("<Q", len(value)) + value + b"\n")
        else:
            parts.append(key + b"=" + value + b"\n")
    return b"".join(parts)
