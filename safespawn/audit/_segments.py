"""The files of a ledger: older segments by their numbers, then the one that is written."""

from __future__ import annotations

import os
import re


def numbers(path: str) -> list[int]:
    """Return the numbers of the older segments, the oldest first. Raises OSError."""
    directory, base = os.path.split(path)
    name = re.compile(re.escape(base) + r"\.([1-9][0-9]{0,17})")
    found = (name.fullmatch(one) for one in os.listdir(directory or "."))
    return sorted(int(match[1]) for match in found if match)


def numbered(path: str) -> list[tuple[int, str]]:
    """Return number and path of the older segments, the oldest first; none where there is no directory.

    Raises OSError.
    """
    try:
        return [(number, f"{path}.{number}") for number in numbers(path)]
    except FileNotFoundError:
        return []
