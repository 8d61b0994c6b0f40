"""The files of a ledger: older segments by their numbers, then the one that is written."""

from __future__ import annotations

import os
import re


def numbered(path: str) -> list[tuple[int, str]]:
    """Return number and path of the older segments, the oldest first. Raises OSError."""
    directory, base = os.path.split(path)
    name = re.compile(re.escape(base) + r"\.([1-9][0-9]{0,17})")
    try:
        names = os.listdir(directory or ".")
    except FileNotFoundError:
        return []
    found = [(match, one) for one in names if (match := name.fullmatch(one))]
    return sorted((int(match[1]), os.path.join(directory, one)) for match, one in found)


def identity(fd: int) -> tuple[int, int]:
    """Return what tells an open file from others as long as it is open: device and inode."""
    seen = os.fstat(fd)
    return seen.st_dev, seen.st_ino
