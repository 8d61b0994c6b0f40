"""Identifiers of chains and spawns."""

from __future__ import annotations

import itertools
import os
import time

from . import _core

_MASK = 2**62 - 1


class _Sequence:
    """Where this process's ids start, and how many it has given out."""

    process = _core.process_number()
    start = int.from_bytes(os.urandom(8), "big")
    numbers = itertools.count()


def reseed() -> None:
    """Begin anew: a forked process must not give out its parent's ids."""
    _Sequence.start = int.from_bytes(os.urandom(8), "big")
    _Sequence.process = _core.process_number()


os.register_at_fork(after_in_child=reseed)


def text(data: bytes) -> str:
    """Return 16 bytes in the form of a UUID."""
    digits = data.hex()
    return "-".join(digits[start:end] for start, end in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))


def uuid7() -> str:
    """Return a UUID of version 7 (RFC 9562): milliseconds, a counter, a random start.

    The counter is that of section 6.2, method 2: ids of one process ascend within a
    millisecond. They are unique, not secret.
    """
    if _Sequence.process != _core.process_number():  # forked past Python
        reseed()
    ms = time.time_ns() // 1_000_000
    tail = (_Sequence.start + next(_Sequence.numbers)) & _MASK
    low = f"{1 << 63 | tail:016x}"
    return f"{ms >> 16 & 0xFFFFFFFF:08x}-{ms & 0xFFFF:04x}-7{_Sequence.start >> 52:03x}-{low[:4]}-{low[4:]}"
