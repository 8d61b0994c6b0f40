"""``LEDGER.state`` as the verifier reads it: while it is written, and whatever is in it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from . import _slots
from ._slots import FORM, MAGIC, UNIT
from ._verify_segments import open_file

#: A ledger that a verifier can check has fewer chains than that: see _verify_scan.CHAINS_MAX.
SLOTS_MAX = 1 << 21
#: A slot that is written all the time is never the same twice; then the last look must do.
LOOKS = 64


class Slot(NamedTuple):
    """What the file says of a chain. ``byte`` is where the slot is."""

    byte: int
    chain: bytes
    epoch: int
    records: int
    seal: bytes
    is_closed: bool


class State(NamedTuple):
    """The slots by chain, and what is wrong with the file: place in it and a sentence.

    ``mono`` is when we began to read it: nanoseconds of CLOCK_MONOTONIC.
    """

    slots: dict[bytes, Slot]
    faults: list[tuple[int, str]]
    mono: int


def read(path: str) -> State:
    """Read the file, in which slots that were given back may be holes. Raises OSError."""
    fd = open_file(path)
    try:
        return _read(fd)
    finally:
        os.close(fd)


def _read(fd: int) -> State:
    state, size = State({}, [], time.monotonic_ns()), os.fstat(fd).st_size
    is_ours = os.pread(fd, len(MAGIC), 0) == MAGIC
    for place, data in _slots.pieces(fd):
        for at, unit in _twice(fd, place, data):
            if not is_ours:
                state.faults.append((0, f"does not begin with {MAGIC.decode()}"))
                return state
            if place + at:
                _add(state, place + at, unit)
        if len(state.slots) + len(state.faults) > SLOTS_MAX:
            state.faults.append((place, "too many slots"))
            return state
    if size % UNIT:
        state.faults.append((size, f"{size} bytes are no whole number of slots"))
    return state


def _twice(fd: int, place: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the slots of a piece that do not change under us: a chain writes its slot after every record.

    A reader may see half of such a write. What it sees twice was not being written, because the two
    halves take turns and the numbers only go up.
    """
    again = os.pread(fd, len(data), place)
    for at, unit in _slots.units(again):
        before, now = data[at : at + UNIT], unit
        for _ in range(LOOKS):
            if now == before:
                break
            before, now = now, os.pread(fd, UNIT, place + at)
        if len(now) == UNIT:
            yield at, now


def _add(state: State, byte: int, unit: bytes) -> None:
    which, closed, chain, epoch, first, first_seal, second, second_seal, rest = FORM.unpack(unit)
    if not any(unit):
        return  # given back under our eyes
    if which > 1 or closed > 1 or any(rest):
        state.faults.append((byte, "this slot is none that a ledger writes"))
        return
    if chain in state.slots:
        state.faults.append((byte, f"a second slot of the chain at byte {state.slots[chain].byte}"))
        return
    records, seal = (second, second_seal) if which else (first, first_seal)
    state.slots[chain] = Slot(byte, chain, epoch, records, seal, bool(closed))
