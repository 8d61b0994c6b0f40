"""Descriptors of ours that live long: where they get their numbers, and whether they are still ours."""

from __future__ import annotations

import os

#: They get a number from here on, where the limit of open files allows: programs name low ones, and
#: daemons close or reuse those by rote.
LOW_FD = 512


def identity(file: int | str) -> tuple[int, int]:
    """Return device and inode of a descriptor, or of what a path leads to. Raises OSError.

    They tell an open file from all others as long as it is open.
    """
    seen = os.stat(file)
    return seen.st_dev, seen.st_ino
