"""``LEDGER.state`` as the verifier reads it: while it is written, and whatever is in it."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from ._verify_segments import open_file

MAGIC = b"SSSTATE1"
UNIT = 128
#: A ledger that a verifier can check has fewer chains than that: see _verify_scan.CHAINS_MAX.
UNITS_MAX = 1 << 21
#: A slot that is written all the time is never the same twice; then the last look must do.
LOOKS = 64

_SLOT = struct.Struct("<II16sQQ32sQ32s16s")


class Slot(NamedTuple):
    """What the file says of a chain. ``byte`` is where the slot is."""

    byte: int
    chain: bytes
    epoch: int
    records: int
    seal: bytes
    is_closed: bool


class State(NamedTuple):
    """The slots by chain, and what is wrong with the file: place in it and a sentence."""

    slots: dict[bytes, Slot]
    faults: list[tuple[int, str]]


def read(path: str) -> State:
    """Read the file. Raises OSError."""
    fd = open_file(path)
    try:
        data, size = _twice(fd), os.fstat(fd).st_size
    finally:
        os.close(fd)
    state = State({}, [])
    if not any(data):
        return state  # its maker was killed before it wrote anything
    if data[: len(MAGIC)] != MAGIC:
        state.faults.append((0, f"does not begin with {MAGIC.decode()}"))
        return state
    if size % UNIT or size > UNITS_MAX * UNIT:
        state.faults.append((size, f"{size} bytes are no whole number of slots, or too many"))
    for byte in range(UNIT, len(data) - UNIT + 1, UNIT):
        _add(state, byte, data[byte : byte + UNIT])
    return state


def _twice(fd: int) -> bytes:
    """Read the file until no slot has changed under us: a chain writes its slot after every record.

    A reader may see half of such a write. What it sees twice was not being written, because the two
    halves take turns and the numbers only go up.
    """
    data = os.pread(fd, UNITS_MAX * UNIT, 0)
    again = os.pread(fd, len(data), 0)
    if again == data:
        return data
    units = [data[at : at + UNIT] for at in range(0, len(data), UNIT)]
    for number, unit in enumerate(units):
        now = again[number * UNIT : (number + 1) * UNIT]
        for _ in range(LOOKS):
            if now == unit:
                break
            unit, now = now, os.pread(fd, UNIT, number * UNIT)  # noqa: PLW2901 - the next look
        units[number] = now
    return b"".join(units)


def _add(state: State, byte: int, unit: bytes) -> None:
    which, closed, chain, epoch, first, first_seal, second, second_seal, rest = _SLOT.unpack(unit)
    if not any(unit):
        return  # given out, and its process was killed at once
    if which > 1 or closed > 1 or any(rest):
        state.faults.append((byte, "this slot is none that a ledger writes"))
        return
    if chain in state.slots:
        state.faults.append((byte, f"a second slot of the chain at byte {state.slots[chain].byte}"))
        return
    records, seal = (second, second_seal) if which else (first, first_seal)
    state.slots[chain] = Slot(byte, chain, epoch, records, seal, bool(closed))
